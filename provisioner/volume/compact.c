// SPDX-License-Identifier: Apache-2.0
/*
 * volume-compact: the top layer of a detached volume is written anew, without leaks, discarded and scattered space: space (is there
 * room for both) -> copy -> record -> sidecar -> drop. The layers below are only read. A layer over others gets what the old one
 * holds, data and zeros, and nothing else; one that stands alone gets what is not zero.
 *
 * The new layer's row comes with the intent. One transaction makes it the top; whichever of the two is not the top then goes.
 * That is the new one where it brings nothing (compressed clusters are written plain).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "common/checked.h"
#include "common/size.h"
#include "common/text.h"
#include "provisioner/volume/chain.h"
#include "provisioner/volume/lifecycle.h"

#define BLOCK_BYTES 512                   /* of st_blocks */
#define METADATA_ROOM (UINT64_C(2) * MIB) /* of a new image, beside what the old one takes */

static int refuse(struct error *err, int number, const char *code, const char *volume, const char *why)
{
    (void)error_set(err, number, "volume '%s' %s", volume, why);
    return error_code(err, code);
}

/* ---- the request --------------------------------------------------------------------------------------------- */

static int compact_insert(struct job *job, void *arg, struct error *err)
{
    struct manager *m = job->manager;
    struct volume_record volume = {0};
    struct layer_record layer = {0};
    (void)arg;
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = volume_check_unused(m, &volume, err);
    if (r == 0)
        r = volume_check_ready(m, &volume, err);
    if (r == 0)
        r = catalogue_layer_find(m->catalogue, volume.top_layer, &layer, err);
    if (r == 0)
        r = job_set(job, "old", layer.id, err);
    if (r < 0)
        return r;
    text_copy_bounded(layer.id, sizeof(layer.id), job_get(job, "new"));
    layer.created = time(NULL);
    return catalogue_layer_insert(m->catalogue, &layer, err);
}

int manager_volume_compact(struct manager *m, const struct caller *caller, const char *name_or_id,
                           struct ticket *ret_ticket, struct error *err)
{
    struct volume_record volume = {0};
    CLEANUP_JOB struct job *job = NULL;
    char id[ID_MAX];
    int r = caller_require(caller, CALLER_OPERATOR, err);
    if (r == 0)
        r = catalogue_volume_find(m->catalogue, name_or_id, &volume, err);
    if (r < 0)
        return r;
    if (strstr(volume.spec, "\"preallocate\":true"))
        return refuse(err, EINVAL, "preallocated", volume.name, "has all its space reserved, which it would lose");
    r = catalogue_id("lay-", id);
    if (r < 0)
        return error_sys(err, r, "compact");
    r = job_create(m, &job_volume_compact, &volume, "", caller, json_pack("{s:s}", "new", id), &job, err);
    return r < 0 ? r : job_submit(&job, compact_insert, NULL, ret_ticket, err);
}

/* ---- steps --------------------------------------------------------------------------------------------------- */

static int find_layer(const struct job *job, const char *which, struct layer_record *ret_layer, struct error *err)
{
    return catalogue_layer_find(job->manager->catalogue, job_get(job, which), ret_layer, err);
}

/* What the file takes and how long it is, kept as `used` and `length`. */
static int note_size(struct job *job, int fd, const char *used, const char *length, struct error *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return error_sys(err, errno, "look at the image file");
    int r = job_set_number(job, used, (uint64_t)st.st_blocks * BLOCK_BYTES, err);
    return r < 0 ? r : job_set_number(job, length, (uint64_t)st.st_size, err);
}

static int check_room(struct job *job, const struct layer_record *layer, struct error *err)
{
    CLEANUP_POOL struct pool *pool = NULL;
    struct pool_usage usage = {0};
    char needed[SIZE_TEXT_MAX], available[SIZE_TEXT_MAX];
    uint64_t need = job_get_number(job, "before") + METADATA_ROOM;
    int r = manager_pool_open(job->manager, layer->pool_id, &pool, err);
    if (r == 0)
        r = pool->ops->usage(pool, &usage, err);
    if (r < 0 || usage.available >= need)
        return r;
    return error_set(err, ENOSPC, "compacting volume '%s' writes a copy of up to %s first, and its pool has %s left",
                     job->record.volume_name, size_format(need, needed), size_format(usage.available, available));
}

/* Also: nothing that only the old file knows may be lost. */
static int step_space(struct job *job, struct error *err)
{
    struct volume_record volume = {0};
    CLEANUP_CHAIN struct chain chain = {0};
    struct blk_worker worker = job_worker(job);
    struct blk_info info = {0};
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = chain_open(job->manager, &volume, true, &chain, err);
    if (r == 0)
        r = note_size(job, chain.layers[0].fd, "before", "length_before", err);
    if (r == 0)
        r = blk_worker_probe(&worker, chain.layers[0].fd, chain.records[0].format, &info, err);
    if (r < 0)
        return r;
    if (info.snapshots)
        return refuse(err, EOPNOTSUPP, "internal-snapshots", volume.name,
                      "has internal snapshots of another program, which a copy would lose");
    return check_room(job, &chain.records[0], err);
}

static int fill(struct job *job, const struct chain *chain, const struct layer_record *layer, int fd, struct error *err)
{
    char backing[ID_MAX + 8];
    struct blk_worker worker = job_worker(job);
    struct blk_create to = {
        .format = layer->format,
        .cluster_size = layer->cluster_size,
        .version = layer->version,
        .extended_l2 = layer->extended_l2,
        .compression = layer->compression,
        .refcount_bits = layer->refcount_bits,
    };
    if (chain->count == 1)
        return blk_worker_convert(&worker, chain->layers, 1, fd, &to, NULL, err);
    (void)snprintf(backing, sizeof(backing), "%s.img", chain->records[1].id); /* for other programs */
    to.backing = backing;
    to.backing_format = chain->records[1].format;
    uint64_t bytes;
    return blk_worker_export_since(&worker, chain->layers, chain->count, 1, fd, &to, &bytes, err);
}

static int step_copy(struct job *job, struct error *err)
{
    struct volume_record volume = {0};
    struct layer_record layer = {0};
    CLEANUP_CHAIN struct chain chain = {0};
    CLEANUP_CLOSE int fd = -1;
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = find_layer(job, "new", &layer, err);
    if (r == 0)
        r = chain_open(job->manager, &volume, true, &chain, err);
    if (r == 0)
        r = layer_file_create(job->manager, &layer, &fd, err);
    if (r == 0)
        r = fill(job, &chain, &layer, fd, err);
    return r < 0 ? r : note_size(job, fd, "after", "length_after", err);
}

static int undo_copy(struct job *job, struct error *err)
{
    struct layer_record layer = {0};
    int r = find_layer(job, "new", &layer, err);
    return r < 0 ? r : layer_file_delete(job->manager, &layer, err);
}

/* Is the copy better: less space, or a shorter file with hardly more? (New files begin with some reserved clusters.) */
static bool copy_wins(const struct job *job)
{
    uint64_t before = job_get_number(job, "before"), after = job_get_number(job, "after");
    return after < before || (job_get_number(job, "length_after") < job_get_number(job, "length_before") &&
                              after - before <= METADATA_ROOM);
}

static int step_record(struct job *job, struct error *err)
{
    struct manager *m = job->manager;
    struct volume_record volume = {0};
    if (!copy_wins(job))
        return 0; /* the old one stays */
    int r = catalogue_begin(m->catalogue, err);
    if (r < 0)
        return r;
    r = job_volume(job, &volume, err);
    text_copy_bounded(volume.top_layer, sizeof(volume.top_layer), job_get(job, "new"));
    if (r == 0)
        r = catalogue_volume_update(m->catalogue, &volume, err);
    return transaction_end(m, r, err);
}

/* The one that is not the volume's top. Gone already: done by a run before this one. */
static int step_drop(struct job *job, struct error *err)
{
    struct manager *m = job->manager;
    struct volume_record volume = {0};
    struct layer_record layer = {0};
    int r = job_volume(job, &volume, err);
    if (r < 0)
        return r;
    bool changed = strcmp(volume.top_layer, job_get(job, "new")) == 0;
    if (find_layer(job, changed ? "old" : "new", &layer, NULL) < 0)
        return 0;
    r = layer_file_delete(m, &layer, err);
    return r < 0 ? r : catalogue_layer_delete(m->catalogue, layer.id, err);
}

static const struct job_step compact_steps[] = {
    {.name = "space", .run = step_space},
    {.name = "copy", .run = step_copy, .undo = undo_copy},
    {.name = "record", .run = step_record, .final = true},
    {.name = "sidecar", .run = step_sidecar, .final = true},
    {.name = "drop", .run = step_drop, .final = true},
};

/* ---- the end ------------------------------------------------------------------------------------------------- */

static int finish_compact(struct job *job, struct error *err)
{
    bool kept = !copy_wins(job);
    json_int_t before = (json_int_t)job_get_number(job, "before");
    json_int_t length_before = (json_int_t)job_get_number(job, "length_before");
    json_int_t after = kept ? before : (json_int_t)job_get_number(job, "after");
    json_int_t length_after = kept ? length_before : (json_int_t)job_get_number(job, "length_after");
    CLEANUP_JSON json_t *result =
        json_pack("{s:s, s:I, s:I, s:I, s:I}", "volume", job->record.volume_name, "before", before, "after", after,
                  "length_before", length_before, "length_after", length_after);
    free(job->record.result);
    job->record.result = json_text(result);
    if (!job->record.result)
        return error_sys(err, ENOMEM, "compact");
    event_record(job->manager, "volume.compacted", job->record.volume_id,
                 json_pack("{s:s, s:I, s:I}", "name", job->record.volume_name, "before", before, "after", after));
    return 0;
}

/* A row that stays, because its file could not be removed, is one that nothing needs: the next merge tries again. */
static int abandon_compact(struct job *job, const struct error *cause, bool undone, struct error *err)
{
    (void)cause;
    return undone ? catalogue_layer_delete(job->manager->catalogue, job_get(job, "new"), err) : 0;
}

const struct job_kind job_volume_compact = {
    .name = "volume-compact",
    .steps = compact_steps,
    .step_count = ARRAY_SIZE(compact_steps),
    .finish = finish_compact,
    .abandon = abandon_compact,
};
