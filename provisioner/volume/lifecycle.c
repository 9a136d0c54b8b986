// SPDX-License-Identifier: Apache-2.0
#include "provisioner/volume/lifecycle.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/text.h"
#include "provisioner/volume/chain.h"
#include "provisioner/volume/snapshot.h"

int volume_size(uint64_t size, uint64_t *ret_size, struct error *err)
{
    if (size == 0 || size > VOLUME_SIZE_MAX)
        return error_set(err, EINVAL, "a volume's size must lie between 1 byte and 64 TiB");
    *ret_size = align_up(size, VOLUME_ALIGN);
    return 0;
}

bool filesystem_known(const char *filesystem)
{
    return strcmp(filesystem, "ext4") == 0 || strcmp(filesystem, "xfs") == 0 || strcmp(filesystem, "none") == 0;
}

int volume_pool(struct manager *m, const char *name_or_id, struct pool_record *ret_pool, struct error *err)
{
    if (name_or_id)
        return catalogue_pool_find(m->catalogue, name_or_id, ret_pool, err);
    CLEANUP_FREE struct pool_record *pools = NULL;
    size_t count = 0;
    int r = catalogue_pool_list(m->catalogue, &pools, &count, err);
    if (r < 0)
        return r;
    if (count != 1)
        return error_set(err, EINVAL, count ? "there are several pools: name one" : "there is no pool yet");
    *ret_pool = pools[0];
    return 0;
}

int volume_existing(struct manager *m, const char *name, const char *spec, struct ticket *ret_ticket, struct error *err)
{
    struct volume_record volume = {0};
    int r = catalogue_volume_find(m->catalogue, name, &volume, err);
    if (r < 0)
        return r;
    if (strcmp(volume.spec, spec) != 0 || strcmp(volume.name, name) != 0) {
        (void)error_set(err, EEXIST, "there is another volume '%s'", name);
        return error_hint(err, "platter volume show %s", name);
    }
    *ret_ticket = (struct ticket){.existed = true};
    text_copy(ret_ticket->object, volume.id);
    if (strcmp(volume.state, "creating") == 0)
        job_find_active(m, volume.id, ret_ticket->job);
    return 0;
}

static int volume_in_use(const struct volume_record *volume, const struct attachment_record *a, struct error *err)
{
    char holder[ERROR_HOLDER_MAX];
    (void)snprintf(holder, sizeof(holder), "%s %s%s%s%s, pid %d, uid %u", a->kind, a->id, a->holder[0] ? " (" : "",
                   a->holder, a->holder[0] ? ")" : "", a->pid, a->uid);
    (void)error_set(err, EBUSY, "volume '%s' is in use by %s%s%s", volume->name, holder, a->target[0] ? " at " : "",
                    a->target);
    (void)error_holder(err, holder);
    (void)error_hint(err, "platter detach %s", a->id);
    (void)error_code(err, "volume-in-use");
    return -EBUSY;
}

static int check_attachments(struct manager *m, const struct volume_record *volume, bool writing_only, bool snapshots,
                             struct error *err)
{
    struct attachment_record *attachments = NULL;
    size_t count = 0;
    int r = catalogue_attachment_list(m->catalogue, volume->id, &attachments, &count, err);
    if (r < 0)
        return r;
    for (size_t i = 0; r == 0 && i < count; i++) {
        bool counts = attachments[i].snapshot_id[0] ? snapshots : !writing_only || !attachments[i].read_only;
        if (counts)
            r = volume_in_use(volume, &attachments[i], err);
    }
    attachment_records_free(attachments, count);
    return r;
}

int volume_check_free(struct manager *m, const struct volume_record *volume, bool writing_only, struct error *err)
{
    return check_attachments(m, volume, writing_only, false, err);
}

int volume_check_unused(struct manager *m, const struct volume_record *volume, struct error *err)
{
    return check_attachments(m, volume, false, true, err);
}

int volume_check_ready(struct manager *m, const struct volume_record *volume, struct error *err)
{
    char job[ID_MAX];
    job_find_active(m, volume->id, job);
    if (job[0] && !merge_cancel(m, volume->id)) {
        (void)error_set(err, EBUSY, "job '%s' on volume '%s' has not ended", job, volume->name);
        (void)error_hint(err, "platter job wait %s", job);
        return error_code(err, "job-running");
    }
    if (strcmp(volume->state, "available") != 0) {
        (void)error_set(err, EINVAL, "volume '%s' is %s", volume->name, volume->state);
        return error_code(err, "volume-not-available");
    }
    return 0;
}

int transaction_end(struct manager *m, int r, struct error *err)
{
    if (r == 0)
        return catalogue_commit(m->catalogue, err);
    catalogue_rollback(m->catalogue);
    return r;
}

int job_submit(struct job **job, int (*insert)(struct job *job, void *arg, struct error *err), void *arg,
               struct ticket *ret_ticket, struct error *err)
{
    struct manager *m = (*job)->manager;
    if (atomic_load(&m->stopping))
        return error_set(err, ESHUTDOWN, "platterd is stopping");
    int r = catalogue_begin(m->catalogue, err);
    if (r < 0)
        return r;
    r = insert(*job, arg, err);
    if (r == 0)
        r = job_insert(*job, err);
    r = transaction_end(m, r, err);
    if (r < 0)
        return r;
    struct ticket ticket = {0};
    text_copy(ticket.object, (*job)->record.attachment_id[0] ? (*job)->record.attachment_id : (*job)->record.volume_id);
    job_start(steal_ptr(job), &ticket);
    *ret_ticket = ticket;
    return 0;
}

int job_volume(const struct job *job, struct volume_record *ret_record, struct error *err)
{
    struct snapshot_record snapshot = {0};
    int r = catalogue_volume_find(job->manager->catalogue, job->record.volume_id, ret_record, err);
    if (r < 0 || !job_get(job, "view")[0])
        return r;
    r = catalogue_snapshot_by_id(job->manager->catalogue, job_get(job, "view"), &snapshot, err);
    if (r == 0)
        snapshot_view(ret_record, &snapshot);
    return r;
}

int job_attachment(const struct job *job, struct attachment_record *ret_record, struct error *err)
{
    return catalogue_attachment_find(job->manager->catalogue, job->record.attachment_id, ret_record, err);
}

/* ---- sidecars ---------------------------------------------------------------------------------------------- */

static json_t *sidecar_layer(const struct layer_record *l)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:I, s:i, s:i, s:i, s:b, s:s, s:b, s:I, s:b}", "id", l->id, "volume_id",
                     l->volume_id, "parent_id", l->parent_id, "format", l->format, "size", (json_int_t)l->size,
                     "cluster_size", (int)l->cluster_size, "version", (int)l->version, "refcount_bits",
                     (int)l->refcount_bits, "extended_l2", l->extended_l2, "compression", l->compression, "frozen",
                     l->frozen, "created", (json_int_t)l->created, "preserved", l->preserved);
}

/* The chain's layers, those beside it (after a restore), and the snapshots. */
static json_t *sidecar_layers(struct manager *m, const struct volume_record *v, struct error *err)
{
    CLEANUP_FREE struct layer_record *chain = NULL, *owned = NULL;
    CLEANUP_JSON json_t *array = json_array();
    size_t count = 0, more = 0;
    int r = catalogue_layer_chain(m->catalogue, v->top_layer, &chain, &count, err);
    if (r == 0)
        r = catalogue_layer_owned(m->catalogue, v->id, &owned, &more, err);
    if (r < 0)
        return NULL;
    for (size_t i = 0; i < count; i++)
        (void)json_array_append_new(array, sidecar_layer(&chain[i]));
    for (size_t i = 0; i < more; i++) {
        bool listed = false;
        for (size_t k = 0; k < count && !listed; k++)
            listed = strcmp(owned[i].id, chain[k].id) == 0;
        if (!listed)
            (void)json_array_append_new(array, sidecar_layer(&owned[i]));
    }
    return json_incref(array);
}

static json_t *sidecar_snapshots(struct manager *m, const char *volume_id, struct error *err)
{
    CLEANUP_FREE struct snapshot_record *list = NULL;
    size_t count = 0;
    if (catalogue_snapshot_list(m->catalogue, volume_id, NULL, INT_MAX, &list, &count, err) < 0)
        return NULL;
    json_t *array = json_array();
    for (size_t i = 0; i < count; i++) {
        const struct snapshot_record *s = &list[i];
        (void)json_array_append_new(
            array,
            json_pack("{s:s, s:s, s:s, s:s, s:I, s:s, s:s, s:b, s:s, s:I, s:s, s:s}", "id", s->id, "name", s->name,
                      "layer_id", s->layer_id, "state", s->state, "size", (json_int_t)s->size, "consistency",
                      s->consistency, "filesystem", s->filesystem, "formatted", s->formatted, "content", s->content,
                      "created", (json_int_t)s->created, "origin", s->origin, "group", s->group_id));
    }
    return array;
}

int sidecar_write(struct manager *m, struct pool *pool, const char *volume_id, struct error *err)
{
    struct volume_record v = {0};
    struct error own = ERROR_INIT;
    err = err ? err : &own;
    int r = catalogue_volume_find(m->catalogue, volume_id, &v, err);
    if (r < 0)
        return r;
    CLEANUP_JSON json_t *layers = sidecar_layers(m, &v, err);
    CLEANUP_JSON json_t *snapshots = layers ? sidecar_snapshots(m, volume_id, err) : NULL;
    if (!snapshots)
        return err->errnum ? -err->errnum : error_sys(err, ENOMEM, "sidecar of volume '%s'", v.name);
    CLEANUP_JSON json_t *json =
        json_pack("{s:i, s:{s:s, s:s, s:s, s:I, s:s, s:b, s:s, s:s, s:s, s:I}, s:O, s:O}", "version", 1, "volume", "id",
                  v.id, "name", v.name, "kind", v.kind, "size", (json_int_t)v.size, "filesystem", v.filesystem,
                  "formatted", v.formatted, "content", v.content, "top_layer", v.top_layer, "spec", v.spec, "created",
                  (json_int_t)v.created, "layers", layers, "snapshots", snapshots);
    CLEANUP_FREE char *text = json ? json_dumps(json, JSON_INDENT(2) | JSON_SORT_KEYS) : NULL;
    if (!text)
        return error_sys(err, ENOMEM, "sidecar of volume '%s'", v.name);
    return pool->ops->sidecar_write(pool, volume_id, text, err);
}

int step_sidecar(struct job *job, struct error *err)
{
    struct volume_record volume = {0};
    CLEANUP_POOL struct pool *pool = NULL;
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = manager_pool_open(job->manager, volume.pool_id, &pool, err);
    return r < 0 ? r : sidecar_write(job->manager, pool, volume.id, err);
}

int undo_sidecar(struct job *job, struct error *err)
{
    struct volume_record volume = {0};
    CLEANUP_POOL struct pool *pool = NULL;
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = manager_pool_open(job->manager, volume.pool_id, &pool, err);
    return r < 0 ? r : pool->ops->sidecar_delete(pool, volume.id, err);
}

/* ---- layer files ------------------------------------------------------------------------------------------- */

int layer_file_create(struct manager *m, const struct layer_record *layer, int *ret_fd, struct error *err)
{
    CLEANUP_POOL struct pool *pool = NULL;
    int r = manager_pool_open(m, layer->pool_id, &pool, err);
    if (r < 0)
        return r;
    r = pool->ops->image_create(pool, layer->id, ret_fd, err);
    if (r != -EEXIST)
        return r;
    error_clear(err);
    r = pool->ops->image_delete(pool, layer->id, err);
    return r < 0 ? r : pool->ops->image_create(pool, layer->id, ret_fd, err);
}

int layer_file_delete(struct manager *m, const struct layer_record *layer, struct error *err)
{
    CLEANUP_POOL struct pool *pool = NULL;
    int r = manager_pool_open(m, layer->pool_id, &pool, err);
    return r < 0 ? r : pool->ops->image_delete(pool, layer->id, err);
}

int undo_layer_files(struct job *job, struct error *err)
{
    CLEANUP_FREE struct layer_record *layers = NULL;
    size_t count = 0;
    int r = catalogue_layer_owned(job->manager->catalogue, job->record.volume_id, &layers, &count, err);
    for (size_t i = 0; r == 0 && i < count; i++) {
        struct layer_use use;
        r = catalogue_layer_use(job->manager->catalogue, &layers[i], &use, err);
        if (r == 0 && use.foreign == 0)
            r = layer_file_delete(job->manager, &layers[i], err);
    }
    return r;
}

int volume_check_exclusive(struct job *job, struct error *err)
{
    struct volume_record volume = {0};
    CLEANUP_CHAIN struct chain chain = {0};
    int r = job_volume(job, &volume, err);
    if (r < 0)
        return r;
    r = chain_open(job->manager, &volume, false, &chain, err);
    return r == -ENOENT ? 0 : r; /* a file that is gone already needs no lock */
}

/* ---- the end of making a volume ---------------------------------------------------------------------------- */

static json_t *volume_event(const struct volume_record *volume)
{
    return json_pack("{s:s, s:I}", "name", volume->name, "size", (json_int_t)volume->size);
}

int finish_new_volume(struct job *job, struct error *err)
{
    struct volume_record volume = {0};
    int r = job_volume(job, &volume, err);
    if (r < 0)
        return r;
    text_copy(volume.state, "available");
    event_record(job->manager, "volume.created", volume.id, volume_event(&volume));
    return catalogue_volume_update(job->manager->catalogue, &volume, err);
}

int abandon_new_volume(struct job *job, const struct error *cause, bool undone, struct error *err)
{
    struct volume_record volume = {0};
    (void)cause;
    int r = job_volume(job, &volume, err);
    if (r < 0)
        return r;
    if (undone)
        return catalogue_volume_delete(job->manager->catalogue, volume.id, err);
    text_copy(volume.state, "failed");
    event_record(job->manager, "volume.failed", volume.id, volume_event(&volume));
    return catalogue_volume_update(job->manager->catalogue, &volume, err);
}
