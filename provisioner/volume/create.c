// SPDX-License-Identifier: Apache-2.0
/*
 * volume-create: rows (state "creating") -> empty file -> image -> sidecar -> "available". And volume-delete:
 * "deleting" -> files -> sidecar -> no rows; from its first step on there is no way back.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/text.h"
#include "provisioner/node/image_lock.h"
#include "provisioner/volume/chain.h"
#include "provisioner/volume/lifecycle.h"

/* ---- the request ------------------------------------------------------------------------------------------- */

static int check_qcow2(const struct volume_spec *s, struct error *err)
{
    uint32_t cluster = s->cluster_size ? s->cluster_size : 65536, bits = s->refcount_bits ? s->refcount_bits : 16;
    uint32_t version = s->version ? s->version : 3;
    const char *compression = s->compression ? s->compression : "zlib";
    if (!is_power_of_two(cluster) || cluster < 512 || cluster > 2 * MIB)
        return error_set(err, EINVAL, "cluster_size must be a power of two between 512 and 2097152");
    if (version != 2 && version != 3)
        return error_set(err, EINVAL, "qcow2 has the versions 2 and 3");
    if (!is_power_of_two(bits) || bits > 64)
        return error_set(err, EINVAL, "refcount_bits must be a power of two up to 64");
    if (strcmp(compression, "zlib") != 0 && strcmp(compression, "zstd") != 0)
        return error_set(err, EINVAL, "compression must be zlib or zstd");
    if (version == 2 && (bits != 16 || s->extended_l2 || strcmp(compression, "zstd") == 0))
        return error_set(err, EINVAL, "qcow2 version 2 has neither extended_l2, zstd nor other refcount_bits than 16");
    if (s->extended_l2 && cluster < 16384)
        return error_set(err, EINVAL, "extended_l2 needs a cluster_size of at least 16384");
    if (s->preallocate)
        return error_set(err, EINVAL, "only raw volumes can be preallocated");
    return 0;
}

static int check_spec(const struct volume_spec *s, struct error *err)
{
    if (!s->name || !catalogue_name_valid(s->name))
        return error_set(err, EINVAL, "'%s' cannot be a volume's name", s->name ? s->name : "");
    if (!filesystem_known(s->filesystem ? s->filesystem : "ext4"))
        return error_set(err, EINVAL, "filesystem must be ext4, xfs or none");
    const char *format = s->format ? s->format : "qcow2";
    if (strcmp(format, "qcow2") == 0)
        return check_qcow2(s, err);
    if (strcmp(format, "raw") != 0)
        return error_set(err, EINVAL, "format must be qcow2 or raw");
    if (s->cluster_size || s->version || s->extended_l2 || s->compression || s->refcount_bits)
        return error_set(err, EINVAL,
                         "a raw volume has no cluster_size, version, extended_l2, compression or "
                         "refcount_bits");
    return 0;
}

struct intent {
    struct volume_record volume;
    struct layer_record layer;
};

static int intent_fill(const struct volume_spec *s, const struct pool_record *pool, uint64_t size,
                       struct intent *intent, struct error *err)
{
    struct volume_record *v = &intent->volume;
    struct layer_record *l = &intent->layer;
    bool qcow2 = !s->format || strcmp(s->format, "qcow2") == 0;
    *v = (struct volume_record){.size = size, .created = time(NULL)};
    *l = (struct layer_record){.size = size, .created = v->created};
    int r = catalogue_id("vol-", v->id);
    if (r == 0)
        r = catalogue_id("lay-", l->id);
    if (r < 0)
        return error_sys(err, r, "new volume");
    text_copy(v->name, s->name);
    text_copy(v->pool_id, pool->id);
    text_copy(v->kind, "block");
    text_copy(v->state, "creating");
    text_copy(v->content, "blank");
    text_copy(v->filesystem, s->filesystem ? s->filesystem : "ext4");
    text_copy(v->top_layer, l->id);
    text_copy(l->volume_id, v->id);
    text_copy(l->pool_id, pool->id);
    text_copy(l->format, qcow2 ? "qcow2" : "raw");
    if (qcow2) {
        l->cluster_size = s->cluster_size ? s->cluster_size : 65536;
        l->version = s->version ? s->version : 3;
        l->refcount_bits = s->refcount_bits ? s->refcount_bits : 16;
        l->extended_l2 = s->extended_l2;
        text_copy(l->compression, s->compression ? s->compression : "zlib");
    }
    bool fail = s->on_no_space && strcmp(s->on_no_space, "fail") == 0; /* the default is left out */
    CLEANUP_JSON json_t *spec = json_pack(
        "{s:s, s:s, s:I, s:s, s:i, s:i, s:b, s:s, s:i, s:b, s:s, s:s*}", "kind", "create", "pool", pool->id, "size",
        (json_int_t)size, "format", l->format, "cluster_size", (int)l->cluster_size, "version", (int)l->version,
        "extended_l2", l->extended_l2, "compression", l->compression, "refcount_bits", (int)l->refcount_bits,
        "preallocate", s->preallocate, "filesystem", v->filesystem, "on_no_space", fail ? "fail" : NULL);
    CLEANUP_FREE char *text = json_text(spec);
    if (!text)
        return error_sys(err, ENOMEM, "new volume");
    (void)snprintf(v->spec, sizeof(v->spec), "%s", text);
    return 0;
}

static int intent_insert(struct job *job, void *arg, struct error *err)
{
    const struct intent *intent = arg;
    int r = catalogue_volume_insert(job->manager->catalogue, &intent->volume, err);
    return r < 0 ? r : catalogue_layer_insert(job->manager->catalogue, &intent->layer, err);
}

int manager_volume_create(struct manager *m, const struct caller *caller, const struct volume_spec *spec,
                          struct ticket *ret_ticket, struct error *err)
{
    struct pool_record pool = {0};
    struct intent intent;
    uint64_t size = 0;
    int r = caller_require(caller, CALLER_OPERATOR, err);
    if (r == 0)
        r = check_spec(spec, err);
    if (r == 0)
        r = volume_size(spec->size, &size, err);
    if (r == 0)
        r = volume_pool(m, spec->pool, &pool, err);
    if (r == 0)
        r = intent_fill(spec, &pool, size, &intent, err);
    if (r < 0)
        return r;
    r = volume_existing(m, spec->name, intent.volume.spec, ret_ticket, err);
    if (r != -ENOENT)
        return r;
    error_clear(err);
    r = manager_pool_admit(m, &pool, size, err);
    if (r < 0)
        return r;
    CLEANUP_JOB struct job *job = NULL;
    json_t *data = json_pack("{s:b}", "preallocate", spec->preallocate);
    r = job_create(m, &job_volume_create, &intent.volume, "", caller, data, &job, err);
    if (r < 0)
        return r;
    r = job_submit(&job, intent_insert, &intent, ret_ticket, err);
    /* Somebody else took the name between the look and the commit. */
    return r == -EEXIST ? volume_existing(m, spec->name, intent.volume.spec, ret_ticket, err) : r;
}

/* ---- the steps --------------------------------------------------------------------------------------------- */

static int job_top_layer(const struct job *job, struct layer_record *ret_layer, struct error *err)
{
    struct volume_record volume = {0};
    int r = job_volume(job, &volume, err);
    return r < 0 ? r : catalogue_layer_find(job->manager->catalogue, volume.top_layer, ret_layer, err);
}

static int step_file(struct job *job, struct error *err)
{
    struct layer_record layer = {0};
    CLEANUP_CLOSE int fd = -1;
    int r = job_top_layer(job, &layer, err);
    return r < 0 ? r : layer_file_create(job->manager, &layer, &fd, err);
}

static int step_image(struct job *job, struct error *err)
{
    struct layer_record layer = {0};
    CLEANUP_POOL struct pool *pool = NULL;
    CLEANUP_CLOSE int fd = -1;
    int r = job_top_layer(job, &layer, err);
    if (r == 0)
        r = manager_pool_open(job->manager, layer.pool_id, &pool, err);
    if (r == 0)
        r = pool->ops->image_open(pool, layer.id, false, &fd, err);
    if (r == 0)
        r = image_lock_take(fd, IMAGE_LOCK_WRITER, job->record.volume_name, err);
    if (r < 0)
        return r;
    if (ftruncate(fd, 0) < 0) /* what an earlier run of this step left */
        return error_sys(err, errno, "empty the image file");
    struct blk_worker worker = job_worker(job);
    struct blk_create create = {
        .format = layer.format,
        .size = layer.size,
        .cluster_size = layer.cluster_size,
        .version = layer.version,
        .extended_l2 = layer.extended_l2,
        .compression = layer.cluster_size ? layer.compression : NULL,
        .refcount_bits = layer.refcount_bits,
        .preallocate = json_is_true(json_object_get(job->data, "preallocate")),
    };
    return blk_worker_create(&worker, fd, &create, err);
}

static const struct job_step create_steps[] = {
    {.name = "file", .run = step_file, .undo = undo_layer_files},
    {.name = "image", .run = step_image},
    {.name = "sidecar", .run = step_sidecar, .undo = undo_sidecar},
};

const struct job_kind job_volume_create = {
    .name = "volume-create",
    .steps = create_steps,
    .step_count = ARRAY_SIZE(create_steps),
    .finish = finish_new_volume,
    .abandon = abandon_new_volume,
};

/* ---- deletion ---------------------------------------------------------------------------------------------- */

static int delete_insert(struct job *job, void *arg, struct error *err)
{
    struct volume_record volume = {0};
    (void)arg;
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = volume_check_unused(job->manager, &volume, err);
    if (r < 0)
        return r;
    r = job_set(job, "previous", volume.state, err);
    if (r < 0)
        return r;
    text_copy(volume.state, "deleting");
    return catalogue_volume_update(job->manager->catalogue, &volume, err);
}

static int check_snapshots(struct manager *m, const struct volume_record *volume, struct error *err)
{
    CLEANUP_FREE struct snapshot_record *list = NULL;
    size_t count = 0;
    int r = catalogue_snapshot_list(m->catalogue, volume->id, NULL, 1, &list, &count, err);
    if (r < 0 || count == 0)
        return r;
    (void)error_set(err, EBUSY, "volume '%s' has snapshots, '%s' and maybe more", volume->name, list[0].name);
    (void)error_hint(err, "platter volume delete %s --snapshots deletes them with it", volume->name);
    return error_code(err, "has-snapshots");
}

int manager_volume_delete(struct manager *m, const struct caller *caller, const char *name_or_id, bool snapshots,
                          struct ticket *ret_ticket, struct error *err)
{
    struct volume_record volume = {0};
    int r = caller_require(caller, CALLER_OPERATOR, err);
    if (r == 0)
        r = catalogue_volume_find(m->catalogue, name_or_id, &volume, err);
    if (r < 0)
        return r;
    char active[ID_MAX];
    job_find_active(m, volume.id, active);
    if (active[0] && strcmp(volume.state, "deleting") == 0) {
        *ret_ticket = (struct ticket){.existed = true};
        text_copy(ret_ticket->job, active);
        text_copy(ret_ticket->object, volume.id);
        return 0;
    }
    /* Failed ones and those whose deletion failed may be deleted, too. */
    r = volume_check_unused(m, &volume, err);
    if (r == 0 && !snapshots)
        r = check_snapshots(m, &volume, err);
    if (r == 0 && (active[0] || strcmp(volume.state, "creating") == 0))
        r = volume_check_ready(m, &volume, err);
    CLEANUP_JOB struct job *job = NULL;
    if (r == 0)
        r = job_create(m, &job_volume_delete, &volume, "", caller, json_object(), &job, err);
    return r < 0 ? r : job_submit(&job, delete_insert, NULL, ret_ticket, err);
}

static const struct job_step delete_steps[] = {
    {.name = "exclusive", .run = volume_check_exclusive},
    {.name = "files", .run = undo_layer_files, .final = true},
    {.name = "sidecar", .run = undo_sidecar, .final = true},
};

static int finish_delete(struct job *job, struct error *err)
{
    struct volume_record volume = {0};
    char heir[ID_MAX];
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = catalogue_snapshot_delete_all(job->manager->catalogue, volume.id, err);
    if (r == 0)
        r = catalogue_layer_hand_over(job->manager->catalogue, volume.id, heir, err);
    if (r == 0)
        r = job_set(job, "heir", heir, err);
    if (r < 0)
        return r;
    CLEANUP_JSON json_t *result =
        json_pack("{s:s, s:s, s:s}", "id", volume.id, "name", volume.name, "state", "deleted");
    free(job->record.result);
    job->record.result = json_text(result);
    event_record(job->manager, "volume.deleted", volume.id, json_pack("{s:s}", "name", volume.name));
    return catalogue_volume_delete(job->manager->catalogue, volume.id, err);
}

static int abandon_delete(struct job *job, const struct error *cause, bool undone, struct error *err)
{
    struct volume_record volume = {0};
    (void)cause;
    int r = job_volume(job, &volume, err);
    if (r < 0)
        return r;
    (void)snprintf(volume.state, WORD_MAX, "%s", undone ? job_get(job, "previous") : "failed");
    return catalogue_volume_update(job->manager->catalogue, &volume, err);
}

const struct job_kind job_volume_delete = {
    .name = "volume-delete",
    .steps = delete_steps,
    .step_count = ARRAY_SIZE(delete_steps),
    .finish = finish_delete,
    .abandon = abandon_delete,
};
