// SPDX-License-Identifier: Apache-2.0
/*
 * volume-merge: a volume's layers that nothing needs any more go; a layer that only its one child needs is merged with
 * it. The child's content is written into the lower file, which then takes the child's name in the pool by one rename, and
 * the child's row its place: whatever referred to the child still finds it. Of an attached volume only what lies below the top
 * is merged, under its server (merge_attached.h); the rest once it is detached.
 *
 * The job can be cancelled until the rename, as any request that needs the volume does (volume_check_ready) or a clone of it
 * (merge_give_way), and is started again when the volume is free. Before the rename the pair is remembered in the job: a lower file that is missing then means
 * that the rename was done.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/checked.h"
#include "common/log.h"
#include "common/text.h"
#include "provisioner/node/image_lock.h"
#include "provisioner/volume/flatten.h"
#include "provisioner/volume/merge_attached.h"
#include "provisioner/volume/snapshot.h"

#define COMMIT_LAYERS_MIN 2
#define GIVE_WAY_TRIES 1500 /* of 20 ms: a worker ends at once, a swap soon */

/* What there is to do: `upper`.id "" = `lower` is not needed and goes; `lower`.id "" = the chain is too long. */
struct work {
    struct layer_record lower, upper;
};

/* May `lower`, whose only child is `upper`, take its place? A raw file may not where qcow2 files above name the child's format. */
static int pair_fits(struct manager *m, const struct layer_record *lower, const struct layer_record *upper,
                     bool *ret_fits, struct error *err)
{
    struct layer_use use = {0};
    *ret_fits = strcmp(lower->format, upper->format) == 0;
    if (*ret_fits)
        return 0;
    int r = catalogue_layer_use(m->catalogue, upper, &use, err);
    *ret_fits = use.children == 0;
    return r;
}

/* What can be done with `lower`, which no volume and no snapshot is? */
static int consider(struct manager *m, const struct volume_record *volume, bool attached,
                    const struct layer_record *lower, struct work *ret_work, bool *ret_found, struct error *err)
{
    struct layer_use use;
    struct work work = {.lower = *lower};
    *ret_found = false;
    int r = catalogue_layer_use(m->catalogue, lower, &use, err);
    if (r < 0 || use.busy)
        return r;
    *ret_found = true;
    if (use.children) {
        r = catalogue_layer_child(m->catalogue, lower->id, &work.upper, err);
        if (r < 0)
            return r;
        if (strcmp(work.upper.volume_id, lower->volume_id) != 0 || (lower->preserved && work.upper.preserved))
            *ret_found = false; /* another volume's, or imported to stay as it is */
        else
            r = pair_fits(m, lower, &work.upper, ret_found, err);
        if (attached && !merge_attached_fits(volume, lower, &work.upper))
            *ret_found = false; /* once it is detached */
    }
    *ret_work = work;
    return r;
}

/* -ENOENT: nothing to do; -ECANCELED: not now. `ret_attachment` as by merge_attachment. */
static int find_work(struct manager *m, const struct volume_record *volume, char ret_attachment[ID_MAX],
                     struct work *ret_work, struct error *err)
{
    CLEANUP_FREE struct layer_record *layers = NULL;
    size_t count = 0;
    bool found = false;
    int r = merge_attachment(m, volume, ret_attachment, err);
    if (r == -EBUSY) {
        error_clear(err);
        return error_set(err, ECANCELED, "the volume is in use: its layers are merged later");
    }
    bool attached = r == 0 && ret_attachment[0];
    if (r == 0)
        r = catalogue_layer_unneeded(m->catalogue, volume->id, &layers, &count, err);
    for (size_t i = 0; r == 0 && !found && i < count; i++)
        r = consider(m, volume, attached, &layers[i], ret_work, &found, err);
    if (r < 0 || found)
        return r;
    *ret_work = (struct work){0};
    return !attached && flatten_wanted(m, volume, FLATTEN_LAYERS) ? 0 : -ENOENT;
}

/* ---- when ---------------------------------------------------------------------------------------------------- */

static int merge_insert(struct job *job, void *arg, struct error *err)
{
    struct manager *m = job->manager;
    struct volume_record volume = {0};
    char attachment[ID_MAX], active[ID_MAX];
    struct work work;
    (void)arg;
    job_find_active(m, job->record.volume_id, active);
    if (active[0]) /* its end comes here again; a merge is not to be cancelled for another one */
        return error_set(err, EBUSY, "job '%s' has not ended", active);
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = volume_check_ready(m, &volume, err);
    return r < 0 ? r : find_work(m, &volume, attachment, &work, err);
}

void merge_schedule(struct manager *m, const char *volume_id)
{
    static const struct caller self = {.role = CALLER_ADMIN};
    struct volume_record volume = {0};
    struct ticket ticket = {0};
    struct work work;
    char attachment[ID_MAX];
    CLEANUP_JOB struct job *job = NULL;
    if (catalogue_volume_find(m->catalogue, volume_id, &volume, NULL) < 0 ||
        find_work(m, &volume, attachment, &work, NULL) < 0)
        return;
    if (job_create(m, &job_volume_merge, &volume, "", &self, json_object(), &job, NULL) == 0)
        (void)job_submit(&job, merge_insert, NULL, &ticket, NULL); /* in use: the end of that use comes here again */
}

void merge_schedule_all(struct manager *m)
{
    CLEANUP_FREE char(*ids)[ID_MAX] = NULL;
    size_t count = 0;
    if (catalogue_layer_owners(m->catalogue, &ids, &count, NULL) < 0)
        return;
    for (size_t i = 0; i < count; i++)
        merge_schedule(m, ids[i]);
}

/* Is the volume's newest job a merge? Then it is told to end. */
bool merge_cancel(struct manager *m, const char *volume_id)
{
    static const struct caller self = {.role = CALLER_ADMIN};
    char id[ID_MAX];
    struct job_record record = {0};
    job_find_active(m, volume_id, id);
    if (!id[0] || catalogue_job_find(m->catalogue, id, &record, NULL) < 0)
        return false;
    bool merge = strcmp(record.kind, job_volume_merge.name) == 0;
    job_record_done(&record);
    if (merge)
        (void)manager_job_cancel(m, &self, id, NULL);
    return merge;
}

bool merge_give_way(struct manager *m, const struct layer_record *layers, size_t count, const char *volume_id)
{
    const struct timespec pause = {.tv_nsec = 20L * 1000 * 1000};
    bool any = false;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(layers[i].volume_id, volume_id) == 0)
            continue;
        for (unsigned n = 0; n < GIVE_WAY_TRIES && merge_cancel(m, layers[i].volume_id); n++) {
            any = true;
            (void)nanosleep(&pause, NULL);
        }
    }
    return any;
}

/* ---- the step ------------------------------------------------------------------------------------------------ */

static int drop_layer(struct job *job, const struct layer_record *layer, struct error *err)
{
    int r = layer_file_delete(job->manager, layer, err);
    crash_point(job->kind->name, "drop", "");
    return r < 0 ? r : catalogue_layer_delete(job->manager->catalogue, layer->id, err);
}

static int open_locked(struct job *job, struct pool *pool, const struct layer_record *layer, bool writable,
                       enum image_lock_mode mode, struct blk_layer *ret_layer, struct error *err)
{
    CLEANUP_CLOSE int fd = -1;
    int r = pool->ops->image_open(pool, layer->id, !writable, &fd, err);
    if (r == 0)
        r = image_lock_take(fd, mode, job->record.volume_name, err);
    if (r == 0)
        *ret_layer = (struct blk_layer){.format = layer->format, .fd = steal_fd(&fd)};
    return r;
}

/* The chain from the upper layer down, of which the second is written to, under the lock `mode`. */
static int open_pair(struct job *job, struct pool *pool, const struct work *work, enum image_lock_mode mode,
                     struct layer_record **ret_records, struct blk_layer *layers, size_t *ret_count, struct error *err)
{
    CLEANUP_FREE struct layer_record *records = NULL;
    size_t count = 0;
    int r = catalogue_layer_chain(job->manager->catalogue, work->upper.id, &records, &count, err);
    if (r == 0 && (count < COMMIT_LAYERS_MIN || count > BLK_LAYERS_MAX))
        r = error_set(err, EUCLEAN, "layer '%s' has %zu layers", work->upper.id, count);
    for (size_t i = 0; r == 0 && i < count; i++) {
        r = open_locked(job, pool, &records[i], i == 1, i == 1 ? mode : IMAGE_LOCK_READER, &layers[i], err);
        if (r == 0)
            *ret_count = i + 1;
    }
    if (r == 0)
        *ret_records = steal_ptr(&records);
    return r;
}

/* `attachment` "": nobody reads the layers. Else its server is left with the chain without `upper`. */
static int commit_pair(struct job *job, struct pool *pool, const struct work *work, const char *attachment,
                       struct error *err)
{
    CLEANUP_FREE struct layer_record *records = NULL;
    struct blk_layer layers[BLK_LAYERS_MAX];
    size_t count = 0;
    bool attached = attachment[0];
    struct blk_worker worker = job_worker(job);
    int r = open_pair(job, pool, work, attached ? IMAGE_LOCK_READER : IMAGE_LOCK_WRITER, &records, layers, &count, err);
    if (r == 0 && attached) {
        worker.bytes_per_second = job->manager->merge_rate;
        r = merge_attached_share(job, attachment, &work->lower, layers[1].fd, err);
    }
    if (r == 0)
        r = blk_worker_commit(&worker, layers, count, err);
    if (attached && count > 1) /* before the server locks it, also when a worker that was ended lingers */
        (void)image_lock_change(layers[1].fd, IMAGE_LOCK_WRITER, IMAGE_LOCK_READER, job->record.volume_name, NULL);
    if (r == 0 && attached)
        r = merge_attached_switch(job, &work->upper, err);
    for (size_t i = 0; i < count; i++)
        cleanup_close(&layers[i].fd);
    return r;
}

/* The rename and the rows, from here on without a way back. The row of `lower` may be gone already. */
static int swap_pair(struct job *job, struct pool *pool, const struct work *work, struct error *err)
{
    struct manager *m = job->manager;
    int r = pool->ops->image_rename(pool, work->lower.id, work->upper.id, err);
    if (r == -ENOENT) { /* done by a run before this one */
        error_clear(err);
        r = 0;
    }
    crash_point(job->kind->name, "swap", ":after");
    if (r == 0)
        r = catalogue_begin(m->catalogue, err);
    if (r < 0)
        return r;
    r = catalogue_layer_merge(m->catalogue, &work->lower, &work->upper, err);
    if (r == 0)
        r = job_set(job, "lower", "", err);
    if (r == 0)
        r = job_save(job, err);
    return transaction_end(m, r, err);
}

/* A restore leaves layers that the volume does not stand on. */
static bool below_top(struct job *job, const struct layer_record *layer)
{
    CLEANUP_FREE struct layer_record *records = NULL;
    struct volume_record volume = {0};
    size_t count = 0;
    bool found = false;
    if (job_volume(job, &volume, NULL) < 0 ||
        catalogue_layer_chain(job->manager->catalogue, volume.top_layer, &records, &count, NULL) < 0)
        return true;
    for (size_t i = 0; i < count && !found; i++)
        found = strcmp(records[i].id, layer->id) == 0;
    return found;
}

static int do_work(struct job *job, const struct work *work, const char *attachment, struct error *err)
{
    CLEANUP_POOL struct pool *pool = NULL;
    if (!work->lower.id[0])
        return flatten(job, err);
    if (!work->upper.id[0])
        return drop_layer(job, &work->lower, err);
    int r = manager_pool_open(job->manager, work->lower.pool_id, &pool, err);
    if (r == 0)
        r = commit_pair(job, pool, work, below_top(job, &work->lower) ? attachment : "", err);
    if (r < 0)
        return r;
    crash_point(job->kind->name, "swap", "");
    r = job_set(job, "lower", work->lower.id, err);
    if (r == 0)
        r = job_set(job, "upper", work->upper.id, err);
    if (r == 0)
        r = catalogue_begin(job->manager->catalogue, err); /* with a flush: the rename must not be known before it */
    if (r < 0)
        return r;
    r = transaction_end(job->manager, job_save(job, err), err);
    return r < 0 ? r : swap_pair(job, pool, work, err);
}

/* A run before this one has come as far as the rename. */
static int resume_swap(struct job *job, struct error *err)
{
    struct work work = {0};
    CLEANUP_POOL struct pool *pool = NULL;
    struct catalogue *c = job->manager->catalogue;
    if (!job_get(job, "lower")[0] || catalogue_layer_find(c, job_get(job, "lower"), &work.lower, NULL) < 0 ||
        catalogue_layer_find(c, job_get(job, "upper"), &work.upper, NULL) == -ENOENT)
        return 0;
    int r = catalogue_layer_find(c, job_get(job, "upper"), &work.upper, err);
    if (r == 0)
        r = manager_pool_open(job->manager, work.lower.pool_id, &pool, err);
    return r < 0 ? r : swap_pair(job, pool, &work, err);
}

static int merge_all(struct job *job, struct error *err)
{
    struct volume_record volume = {0};
    struct work work;
    char attachment[ID_MAX];
    int r = resume_swap(job, err);
    while (r == 0) {
        if (atomic_load(&job->cancelled) || atomic_load(&job->manager->stopping))
            return error_set(err, ECANCELED, "somebody needs the volume: the rest is merged later");
        r = job_volume(job, &volume, err);
        if (r == 0)
            r = find_work(job->manager, &volume, attachment, &work, err);
        if (r == -ENOENT)
            return 0;
        if (r == 0)
            r = do_work(job, &work, attachment, err);
    }
    return r;
}

static int step_merge(struct job *job, struct error *err)
{
    int r = merge_all(job, err);
    merge_attached_restore(job);
    return r;
}

/* Cancelled before the step went on after a crash: a rename that was done is followed by its rows all the same. */
static int undo_merge(struct job *job, struct error *err)
{
    int r = resume_swap(job, err);
    merge_attached_restore(job);
    return r;
}

static const struct job_step merge_steps[] = {
    {.name = "merge", .run = step_merge, .undo = undo_merge},
    {.name = "sidecar", .run = step_sidecar},
};

static int finish_merge(struct job *job, struct error *err)
{
    (void)err;
    event_record(job->manager, "volume.merged", job->record.volume_id,
                 json_pack("{s:s}", "name", job->record.volume_name));
    return 0;
}

static int abandon_merge(struct job *job, const struct error *cause, bool undone, struct error *err)
{
    (void)cause;
    if (!undone && job_get(job, "lower")[0])
        return error_set(err, EINPROGRESS, "a layer was renamed, but not its row");
    return 0; /* what was merged is recorded, the rest is as it was */
}

const struct job_kind job_volume_merge = {
    .name = "volume-merge",
    .steps = merge_steps,
    .step_count = ARRAY_SIZE(merge_steps),
    .finish = finish_merge,
    .abandon = abandon_merge,
};
