// SPDX-License-Identifier: Apache-2.0
/*
 * volume-check: every image file of a volume that nobody has attached is compared with itself, and with `repair` put right.
 * A worker does it; a crash in its midst leaves each file as it was or better, and the step is done again from its start. The
 * result tells what the last run found. One file at a time is open, for writing only when it is to be repaired: a layer that
 * somebody else reads (a clone) is refused then.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "provisioner/node/image_lock.h"
#include "provisioner/volume/lifecycle.h"

static int check_insert(struct job *job, void *arg, struct error *err)
{
    struct volume_record volume = {0};
    (void)arg;
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = volume_check_free(job->manager, &volume, false, err);
    return r < 0 ? r : volume_check_ready(job->manager, &volume, err);
}

int manager_volume_check(struct manager *m, const struct caller *caller, const char *name_or_id, bool repair,
                         struct ticket *ret_ticket, struct error *err)
{
    struct volume_record volume = {0};
    CLEANUP_JOB struct job *job = NULL;
    int r = caller_require(caller, CALLER_OPERATOR, err);
    if (r == 0)
        r = catalogue_volume_find(m->catalogue, name_or_id, &volume, err);
    if (r == 0)
        r = job_create(m, &job_volume_check, &volume, "", caller, json_pack("{s:b}", "repair", repair), &job, err);
    return r < 0 ? r : job_submit(&job, check_insert, NULL, ret_ticket, err);
}

/* ---- the step ------------------------------------------------------------------------------------------------ */

static uint64_t errors_of(const struct blk_check *k)
{
    return k->low_counts + k->copied_flags + k->bad_entries + k->double_use;
}

/* What is wrong still, leaks set aside: they waste space and hurt nobody. */
static uint64_t errors_left(const struct blk_check *k)
{
    return MIN(errors_of(k), errors_of(k) + k->leaks - MIN(k->repaired, errors_of(k) + k->leaks));
}

static json_t *counters(const struct blk_check *k)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:b}", "clusters",
                     (json_int_t)k->clusters, "allocated", (json_int_t)k->allocated, "compressed",
                     (json_int_t)k->compressed, "leaks", (json_int_t)k->leaks, "low_counts", (json_int_t)k->low_counts,
                     "copied_flags", (json_int_t)k->copied_flags, "bad_entries", (json_int_t)k->bad_entries,
                     "double_use", (json_int_t)k->double_use, "repaired", (json_int_t)k->repaired, "errors",
                     (json_int_t)errors_left(k), "dirty", k->dirty, "corrupt", k->corrupt);
}

static int open_layer(struct job *job, const struct layer_record *layer, bool repair, int *ret_fd, struct error *err)
{
    CLEANUP_POOL struct pool *pool = NULL;
    CLEANUP_CLOSE int fd = -1;
    int r = manager_pool_open(job->manager, layer->pool_id, &pool, err);
    if (r == 0)
        r = pool->ops->image_open(pool, layer->id, !repair, &fd, err);
    if (r < 0)
        return r;
    r = image_lock_take(fd, repair ? IMAGE_LOCK_WRITER : IMAGE_LOCK_READER, job->record.volume_name, err);
    if (r == -EBUSY) {
        (void)error_holder(err, "another program that has the image file open");
        return error_code(err, "volume-in-use");
    }
    if (r == 0)
        *ret_fd = steal_fd(&fd);
    return r;
}

static int check_layer(struct job *job, const struct layer_record *layer, json_t *list, struct error *err)
{
    bool repair = json_is_true(json_object_get(job->data, "repair"));
    struct blk_worker worker = job_worker(job);
    struct blk_check check = {0};
    CLEANUP_CLOSE int fd = -1;
    int r = open_layer(job, layer, repair, &fd, err);
    if (r == 0)
        r = blk_worker_check(&worker, fd, layer->format, repair, &check, err);
    if (r < 0)
        return r;
    json_t *entry = counters(&check);
    if (!entry || json_object_set_new(entry, "id", json_string(layer->id)) < 0 ||
        json_object_set_new(entry, "format", json_string(layer->format)) < 0 || json_array_append_new(list, entry) < 0)
        return error_sys(err, ENOMEM, "check");
    return 0;
}

static int step_check(struct job *job, struct error *err)
{
    struct volume_record volume = {0};
    CLEANUP_FREE struct layer_record *layers = NULL;
    CLEANUP_JSON json_t *list = json_array();
    size_t count = 0;
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = catalogue_layer_chain(job->manager->catalogue, volume.top_layer, &layers, &count, err);
    for (size_t i = 0; r == 0 && i < count; i++)
        r = check_layer(job, &layers[i], list, err);
    if (r == 0 && json_object_set(job->data, "layers", list) < 0)
        r = error_sys(err, ENOMEM, "check");
    return r;
}

static const struct job_step check_steps[] = {{.name = "check", .run = step_check}};

/* ---- the end ------------------------------------------------------------------------------------------------- */

/* The layers' counters, and their sums. */
static json_t *result_of(const struct job *job)
{
    static const char *const names[] = {"leaks",      "low_counts", "copied_flags", "bad_entries",
                                        "double_use", "repaired",   "errors"};
    json_t *layers = json_object_get(job->data, "layers"), *layer;
    json_t *result = json_pack("{s:s, s:O?, s:O?}", "volume", job->record.volume_name, "repair",
                               json_object_get(job->data, "repair"), "layers", layers);
    size_t index;
    for (size_t i = 0; result && i < ARRAY_SIZE(names); i++) {
        json_int_t sum = 0;
        json_array_foreach (layers, index, layer)
            sum += json_integer_value(json_object_get(layer, names[i]));
        (void)json_object_set_new(result, names[i], json_integer(sum));
    }
    return result;
}

static void tell(struct job *job, const json_t *result)
{
    static const char *const kinds[][2] = {{"repaired", "volume.repaired"}, {"errors", "volume.corrupt"}};
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        json_t *number = json_object_get(result, kinds[i][0]);
        if (json_integer_value(number) > 0)
            event_record(job->manager, kinds[i][1], job->record.volume_id,
                         json_pack("{s:s, s:O}", "name", job->record.volume_name, kinds[i][0], number));
    }
}

static int finish_check(struct job *job, struct error *err)
{
    CLEANUP_JSON json_t *result = result_of(job);
    free(job->record.result);
    job->record.result = json_text(result);
    if (!job->record.result)
        return error_sys(err, ENOMEM, "check");
    tell(job, result);
    return 0;
}

/* No record has changed. An image whose header cannot be used is news, too. */
static int abandon_check(struct job *job, const struct error *cause, bool undone, struct error *err)
{
    (void)undone, (void)err;
    if (cause->errnum == EUCLEAN)
        event_record(job->manager, "volume.corrupt", job->record.volume_id,
                     json_pack("{s:s, s:s}", "name", job->record.volume_name, "error", cause->message));
    return 0;
}

const struct job_kind job_volume_check = {
    .name = "volume-check",
    .steps = check_steps,
    .step_count = ARRAY_SIZE(check_steps),
    .finish = finish_check,
    .abandon = abandon_check,
};
