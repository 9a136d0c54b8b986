// SPDX-License-Identifier: Apache-2.0
/*
 * volume-resize: image -> record -> device -> sidecar -> file system. Growing an image cannot be undone, so from the
 * record on the job only goes forward: whatever fails later, the record tells the size that the image has.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/checked.h"
#include "common/text.h"
#include "provisioner/node/loop.h"
#include "provisioner/node/mkfs.h"
#include "provisioner/volume/attach.h"
#include "provisioner/volume/chain.h"
#include "provisioner/volume/server.h"

/* The attachment that has the volume for writing; -ENOENT: none. Any that is read-only or has failed is in the way. */
static int resize_attachment(struct manager *m, const struct volume_record *volume, struct attachment_record *ret,
                             struct error *err)
{
    struct attachment_record *list;
    size_t count = 0;
    int r = catalogue_attachment_list(m->catalogue, volume->id, &list, &count, err);
    if (r < 0)
        return r;
    if (count == 1 && !list[0].read_only && strcmp(list[0].state, "attached") == 0) {
        *ret = list[0];
        free(list);
        return 0;
    }
    attachment_records_free(list, count);
    return count ? volume_check_free(m, volume, false, err) : -ENOENT;
}

static int resize_insert(struct job *job, void *arg, struct error *err)
{
    struct volume_record volume = {0};
    (void)arg;
    int r = job_volume(job, &volume, err);
    return r < 0 ? r : volume_check_ready(job->manager, &volume, err);
}

/* A volume of that size already: only a mounted file system may still have to follow. */
static int resize_same(struct manager *m, const struct volume_record *volume, struct ticket *ret_ticket,
                       struct error *err)
{
    struct attachment_record a = {0};
    int r = resize_attachment(m, volume, &a, err);
    bool mounted = r == 0 && strcmp(a.kind, "mount") == 0;
    if (r == 0)
        attachment_record_done(&a);
    if (r < 0 && r != -ENOENT)
        return r;
    if (mounted)
        return 1;
    *ret_ticket = (struct ticket){.existed = true};
    text_copy(ret_ticket->object, volume->id);
    return 0;
}

static int resize_start(struct manager *m, const struct caller *caller, const struct volume_record *volume,
                        uint64_t size, struct ticket *ret_ticket, struct error *err)
{
    struct pool_record pool = {0};
    struct attachment_record a = {0};
    CLEANUP_JOB struct job *job = NULL;
    int r = resize_attachment(m, volume, &a, err);
    if (r == 0)
        attachment_record_done(&a);
    if (r < 0 && r != -ENOENT)
        return r;
    r = catalogue_pool_find(m->catalogue, volume->pool_id, &pool, err);
    if (r == 0)
        r = manager_pool_admit(m, &pool, size - volume->size, err);
    if (r == 0)
        r = job_create(m, &job_volume_resize, volume, "", caller, json_pack("{s:I}", "size", (json_int_t)size), &job,
                       err);
    return r < 0 ? r : job_submit(&job, resize_insert, NULL, ret_ticket, err);
}

static int refuse_shrink(const struct volume_record *volume, struct error *err)
{
    (void)error_set(err, EINVAL, "volume '%s' has %llu bytes, which is more", volume->name,
                    (unsigned long long)volume->size);
    (void)error_hint(err, "--shrink makes a detached volume smaller");
    return error_code(err, "shrink-refused");
}

int manager_volume_resize(struct manager *m, const struct caller *caller, const struct resize_spec *spec,
                          struct ticket *ret_ticket, struct error *err)
{
    struct volume_record volume = {0};
    uint64_t rounded = 0;
    int r = caller_require(caller, CALLER_OPERATOR, err);
    if (r == 0)
        r = volume_size(spec->size, &rounded, err);
    if (r == 0)
        r = catalogue_volume_find(m->catalogue, spec->volume, &volume, err);
    if (r < 0)
        return r;
    if (rounded < volume.size)
        return spec->shrink ? volume_shrink_start(m, caller, &volume, rounded, spec->discard_data, ret_ticket, err)
                            : refuse_shrink(&volume, err);
    if (rounded == volume.size) {
        r = resize_same(m, &volume, ret_ticket, err);
        if (r <= 0)
            return r;
    }
    return resize_start(m, caller, &volume, rounded, ret_ticket, err);
}

/* ---- the steps --------------------------------------------------------------------------------------------- */

static int resize_offline(struct job *job, const struct volume_record *volume, uint64_t size, struct error *err)
{
    CLEANUP_CHAIN struct chain chain = {0};
    struct blk_worker worker = job_worker(job);
    int r = chain_open(job->manager, volume, false, &chain, err);
    return r < 0 ? r : blk_worker_resize(&worker, chain.layers, chain.count, size, err);
}

/* A raw file under a loop device: the device holds the image lock, and its owner is us. */
static int resize_under_loop(struct job *job, const struct volume_record *volume, uint64_t size, struct error *err)
{
    CLEANUP_POOL struct pool *pool = NULL;
    CLEANUP_CLOSE int fd = -1;
    int r = manager_pool_open(job->manager, volume->pool_id, &pool, err);
    if (r == 0)
        r = pool->ops->image_open(pool, volume->top_layer, false, &fd, err);
    if (r < 0)
        return r;
    struct blk_worker worker = job_worker(job);
    struct blk_layer layer = {.format = "raw", .fd = fd};
    return blk_worker_resize(&worker, &layer, 1, size, err);
}

static int step_grow_image(struct job *job, struct error *err)
{
    struct volume_record volume = {0};
    struct attachment_record a = {0};
    uint64_t size = job_get_number(job, "size");
    int r = job_volume(job, &volume, err);
    if (r < 0 || volume.size == size)
        return r;
    r = resize_attachment(job->manager, &volume, &a, err);
    if (r == -ENOENT)
        return resize_offline(job, &volume, size, err);
    if (r < 0)
        return r;
    struct blk_client *client;
    if (strcmp(a.via, "loop") == 0) {
        r = resize_under_loop(job, &volume, size, err);
    } else {
        r = server_connect(job->manager, a.id, &client, err);
        if (r == 0)
            r = blk_resize(client, size, err);
    }
    attachment_record_done(&a);
    return r;
}

static int step_record_size(struct job *job, struct error *err)
{
    struct manager *m = job->manager;
    struct volume_record volume = {0};
    struct layer_record layer = {0};
    int r = catalogue_begin(m->catalogue, err);
    if (r < 0)
        return r;
    r = job_volume(job, &volume, err);
    if (r == 0)
        r = catalogue_layer_find(m->catalogue, volume.top_layer, &layer, err);
    if (r == 0) {
        layer.size = volume.size = job_get_number(job, "size");
        volume.behind = volume.formatted && strcmp(volume.filesystem, "none") != 0;
        r = catalogue_layer_update(m->catalogue, &layer, err);
    }
    if (r == 0)
        r = catalogue_volume_update(m->catalogue, &volume, err);
    return transaction_end(m, r, err);
}

/* Facts of the one attachment; *ret_data NULL when there is none. */
static int resize_facts(struct job *job, struct attachment_record *a, json_t **ret_data, struct error *err)
{
    struct volume_record volume = {0};
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = resize_attachment(job->manager, &volume, a, err);
    if (r < 0)
        return r;
    *ret_data = json_loads(a->data, 0, NULL);
    return 0;
}

static int step_grow_device(struct job *job, struct error *err)
{
    struct attachment_record a = {0};
    CLEANUP_JSON json_t *facts = NULL;
    int r = resize_facts(job, &a, &facts, err);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    const char *device = json_string_value(json_object_get(facts, "device"));
    char label[LOOP_LABEL_MAX];
    (void)snprintf(label, sizeof(label), "platter/%s", a.id);
    attachment_record_done(&a);
    return device ? loop_resize(device, label, err) : 0;
}

static int step_grow_filesystem(struct job *job, struct error *err)
{
    struct attachment_record a = {0};
    CLEANUP_JSON json_t *facts = NULL;
    int r = resize_facts(job, &a, &facts, err);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    bool mounted = strcmp(a.kind, "mount") == 0;
    attachment_record_done(&a);
    const char *target = json_string_value(json_object_get(facts, "canonical"));
    const char *filesystem = json_string_value(json_object_get(facts, "filesystem"));
    if (!mounted || !target || !filesystem)
        return 0;
    r = mkfs_grow(target, filesystem, job_get_number(job, "size"), err);
    if (r < 0)
        return error_prefix(err, "volume '%s' has grown, its file system follows at the next mount",
                            job->record.volume_name);
    return job_set(job, "followed", "yes", err);
}

static const struct job_step resize_steps[] = {
    {.name = "image", .run = step_grow_image},
    {.name = "record", .run = step_record_size, .final = true},
    {.name = "device", .run = step_grow_device, .final = true},
    {.name = "sidecar", .run = step_sidecar, .final = true},
    {.name = "filesystem", .run = step_grow_filesystem, .final = true},
};

static int finish_resize(struct job *job, struct error *err)
{
    struct volume_record volume = {0};
    int r = job_volume(job, &volume, err);
    if (r == 0 && job_get(job, "followed")[0]) {
        volume.behind = false;
        r = catalogue_volume_update(job->manager->catalogue, &volume, err);
    }
    if (r < 0)
        return r;
    event_record(
        job->manager, "volume.resized", job->record.volume_id,
        json_pack("{s:s, s:I}", "name", job->record.volume_name, "size", (json_int_t)job_get_number(job, "size")));
    return 0;
}

static int abandon_resize(struct job *job, const struct error *cause, bool undone, struct error *err)
{
    (void)job, (void)cause, (void)undone, (void)err;
    return 0; /* the record step is the only one that changes records, and it tells the truth */
}

const struct job_kind job_volume_resize = {
    .name = "volume-resize",
    .steps = resize_steps,
    .step_count = ARRAY_SIZE(resize_steps),
    .finish = finish_resize,
    .abandon = abandon_resize,
};
