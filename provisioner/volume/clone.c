// SPDX-License-Identifier: Apache-2.0
/*
 * volume-clone: a new volume whose only own layer is empty and stands on a snapshot's. volume-restore: a volume gets such a
 * layer as its new top; the old top, if no snapshot is above or of it, is removed by the next merge. Of a raw snapshot that can be
 * reflinked the layer is a raw one that stands for itself.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/checked.h"
#include "common/text.h"
#include "provisioner/volume/reflink.h"
#include "provisioner/volume/snapshot.h"

struct intent {
    struct volume_record volume;
    struct layer_record layer;
    bool reflink;
};

/* The new top over the snapshot, or a raw one beside it. */
static int fill_layer(const struct snapshot_record *s, uint64_t size, struct intent *intent, struct error *err)
{
    struct layer_record parent = {0};
    text_copy(parent.id, s->layer_id);
    return intent->reflink ? reflink_fill(&intent->volume, s->layer_id, size, &intent->layer, err)
                           : overlay_fill(&intent->volume, &parent, size, &intent->layer, err);
}

static int insert_layer(struct job *job, const struct intent *intent, struct error *err)
{
    struct manager *m = job->manager;
    struct snapshot_record s = {0};
    int r = catalogue_snapshot_by_id(m->catalogue, job_get(job, "snapshot"), &s, err); /* still there? */
    if (r == 0 && !intent->reflink)
        r = overlay_check(m, intent->layer.parent_id, err);
    if (r == 0)
        r = catalogue_layer_insert(m->catalogue, &intent->layer, err);
    if (r == 0)
        r = job_set(job, "layer", intent->layer.id, err);
    return r < 0 || !intent->reflink ? r : job_set(job, "source", intent->layer.parent_id, err);
}

static int step_image(struct job *job, struct error *err)
{
    return job_get(job, "source")[0] ? reflink_copy(job, false, err) : step_overlay_image(job, err);
}

/* ---- clone --------------------------------------------------------------------------------------------------- */

static int clone_fill(const char *name, const struct volume_record *source, const struct snapshot_record *s,
                      uint64_t size, struct intent *intent, struct error *err)
{
    struct volume_record *v = &intent->volume;
    *v = *source; /* a view of the snapshot: file system and pool are its */
    v->size = size;
    v->behind = size > s->size ? s->formatted && strcmp(s->filesystem, "none") != 0 : s->behind;
    v->created = time(NULL);
    int r = catalogue_id("vol-", v->id);
    if (r < 0)
        return error_sys(err, r, "new volume");
    text_copy_bounded(v->name, sizeof(v->name), name);
    text_copy(v->state, "creating");
    r = fill_layer(s, size, intent, err);
    if (r < 0)
        return r;
    text_copy(v->top_layer, intent->layer.id);
    CLEANUP_JSON json_t *spec =
        json_pack("{s:s, s:s, s:I}", "kind", "clone", "snapshot", s->id, "size", (json_int_t)size);
    CLEANUP_FREE char *text = json_text(spec);
    if (!text)
        return error_sys(err, ENOMEM, "new volume");
    text_copy_bounded(v->spec, sizeof(v->spec), text);
    return 0;
}

static int clone_insert(struct job *job, void *arg, struct error *err)
{
    struct intent *intent = arg;
    struct manager *m = job->manager;
    struct pool_record pool = {0};
    int r = catalogue_pool_find(m->catalogue, intent->volume.pool_id, &pool, err);
    if (r == 0)
        r = manager_pool_admit(m, &pool, intent->volume.size, err);
    if (r == 0)
        r = catalogue_volume_insert(m->catalogue, &intent->volume, err);
    return r < 0 ? r : insert_layer(job, intent, err);
}

int manager_volume_clone(struct manager *m, const struct caller *caller, const struct clone_spec *spec,
                         struct ticket *ret_ticket, struct error *err)
{
    struct volume_record source = {0};
    struct snapshot_record s = {0};
    struct intent intent = {0};
    CLEANUP_JOB struct job *job = NULL;
    uint64_t size = 0;
    int r = caller_require(caller, CALLER_OPERATOR, err);
    if (r == 0 && !catalogue_name_valid(spec->name))
        r = error_set(err, EINVAL, "'%s' cannot be a volume's name", spec->name);
    if (r == 0 && !strchr(spec->snapshot, '@'))
        r = error_set(err, EINVAL, "a clone is made of VOLUME@SNAPSHOT, not of '%s'", spec->snapshot);
    if (r == 0)
        r = volume_or_snapshot_find(m, spec->snapshot, &source, &s, err);
    if (r == 0)
        r = volume_size(spec->size ? spec->size : s.size, &size, err);
    if (r < 0)
        return r;
    if (size < s.size)
        return error_set(err, EINVAL, "snapshot '%s' has %llu bytes: a clone cannot be smaller", spec->snapshot,
                         (unsigned long long)s.size);
    r = reflink_possible(m, s.layer_id, &intent.reflink, err);
    if (r == 0)
        r = clone_fill(spec->name, &source, &s, size, &intent, err);
    if (r < 0)
        return r;
    r = volume_existing(m, spec->name, intent.volume.spec, ret_ticket, err);
    if (r != -ENOENT)
        return r;
    error_clear(err);
    r = job_create(m, &job_volume_clone, &intent.volume, "", caller,
                   json_pack("{s:s, s:s}", "snapshot", s.id, "heir", source.id), &job, err);
    return r < 0 ? r : job_submit(&job, clone_insert, &intent, ret_ticket, err);
}

static int step_clone_record(struct job *job, struct error *err)
{
    int r = job_get(job, "source")[0] ? catalogue_begin(job->manager->catalogue, err) : 1;
    return r < 0 ? r : r == 1 ? 0 : transaction_end(job->manager, reflink_release(job, err), err);
}

static const struct job_step clone_steps[] = {
    {.name = "file", .run = step_overlay_file, .undo = undo_overlay_file},
    {.name = "image", .run = step_image},
    {.name = "record", .run = step_clone_record},
    {.name = "sidecar", .run = step_sidecar, .undo = undo_sidecar},
};

const struct job_kind job_volume_clone = {
    .name = "volume-clone",
    .steps = clone_steps,
    .step_count = ARRAY_SIZE(clone_steps),
    .finish = finish_new_volume,
    .abandon = abandon_new_volume,
};

/* ---- restore ------------------------------------------------------------------------------------------------- */

static int restore_insert(struct job *job, void *arg, struct error *err)
{
    struct intent *intent = arg;
    struct manager *m = job->manager;
    struct volume_record volume = {0};
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = volume_check_free(m, &volume, false, err);
    if (r == 0)
        r = volume_check_ready(m, &volume, err);
    return r < 0 ? r : insert_layer(job, intent, err);
}

int manager_volume_restore(struct manager *m, const struct caller *caller, const char *snapshot,
                           struct ticket *ret_ticket, struct error *err)
{
    struct intent intent = {0};
    struct snapshot_record s = {0};
    CLEANUP_JOB struct job *job = NULL;
    int r = caller_require(caller, CALLER_OPERATOR, err);
    if (r == 0 && !strchr(snapshot, '@'))
        r = error_set(err, EINVAL, "'%s' is not VOLUME@SNAPSHOT", snapshot);
    if (r == 0)
        r = volume_or_snapshot_find(m, snapshot, &intent.volume, &s, err);
    if (r == 0)
        r = reflink_possible(m, s.layer_id, &intent.reflink, err);
    if (r == 0)
        r = fill_layer(&s, s.size, &intent, err);
    if (r == 0)
        r = job_create(m, &job_volume_restore, &intent.volume, "", caller, json_pack("{s:s}", "snapshot", s.id), &job,
                       err);
    return r < 0 ? r : job_submit(&job, restore_insert, &intent, ret_ticket, err);
}

/* Somebody outside may have the old top open. */
static int step_restore_exclusive(struct job *job, struct error *err)
{
    return volume_check_exclusive(job, err);
}

static int step_restore_record(struct job *job, struct error *err)
{
    struct manager *m = job->manager;
    struct volume_record volume = {0};
    struct snapshot_record s = {0};
    int r = catalogue_begin(m->catalogue, err);
    if (r < 0)
        return r;
    r = job_volume(job, &volume, err);
    if (r == 0)
        r = catalogue_snapshot_find(m->catalogue, volume.id, job_get(job, "snapshot"), &s, err);
    if (r == 0) {
        snapshot_view(&volume, &s);
        text_copy_bounded(volume.top_layer, sizeof(volume.top_layer), job_get(job, "layer"));
        r = catalogue_volume_update(m->catalogue, &volume, err);
    }
    if (r == 0 && job_get(job, "source")[0])
        r = reflink_release(job, err);
    return transaction_end(m, r, err);
}

static const struct job_step restore_steps[] = {
    {.name = "exclusive", .run = step_restore_exclusive},
    {.name = "file", .run = step_overlay_file, .undo = undo_overlay_file},
    {.name = "image", .run = step_image},
    {.name = "record", .run = step_restore_record, .final = true},
    {.name = "sidecar", .run = step_sidecar, .final = true},
};

static int finish_restore(struct job *job, struct error *err)
{
    (void)err;
    event_record(job->manager, "volume.restored", job->record.volume_id,
                 json_pack("{s:s, s:s}", "name", job->record.volume_name, "snapshot", job_get(job, "snapshot")));
    return 0;
}

static int abandon_restore(struct job *job, const struct error *cause, bool undone, struct error *err)
{
    (void)cause;
    return undone ? catalogue_layer_delete(job->manager->catalogue, job_get(job, "layer"), err) : 0;
}

const struct job_kind job_volume_restore = {
    .name = "volume-restore",
    .steps = restore_steps,
    .step_count = ARRAY_SIZE(restore_steps),
    .finish = finish_restore,
    .abandon = abandon_restore,
};
