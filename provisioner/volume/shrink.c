// SPDX-License-Identifier: Apache-2.0
/*
 * volume-shrink: look what stands in the way -> image -> record -> sidecar. Detached only. Once the image step has begun
 * the end of the volume may be gone, so from there the job only goes forward; should it fail, the record keeps the old
 * size and the same command again goes on, whatever size the image has got.
 */
#include "common/checked.h"
#include "provisioner/volume/chain.h"
#include "provisioner/volume/lifecycle.h"

static int shrink_insert(struct job *job, void *arg, struct error *err)
{
    struct volume_record volume = {0};
    (void)arg;
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = volume_check_free(job->manager, &volume, false, err);
    return r < 0 ? r : volume_check_ready(job->manager, &volume, err);
}

int volume_shrink_start(struct manager *m, const struct caller *caller, const struct volume_record *volume,
                        uint64_t size, bool discard_data, struct ticket *ret_ticket, struct error *err)
{
    CLEANUP_JOB struct job *job = NULL;
    int r = job_create(m, &job_volume_shrink, volume, "", caller,
                       json_pack("{s:I, s:I}", "size", (json_int_t)size, "discard_data", (json_int_t)discard_data),
                       &job, err);
    return r < 0 ? r : job_submit(&job, shrink_insert, NULL, ret_ticket, err);
}

static int run_worker(struct job *job, bool check_only, struct error *err)
{
    struct volume_record volume = {0};
    CLEANUP_CHAIN struct chain chain = {0};
    struct blk_worker worker = job_worker(job);
    struct blk_shrink shrink = {
        .size = job_get_number(job, "size"),
        .discard_data = job_get_number(job, "discard_data") != 0,
        .check_only = check_only,
    };
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = chain_open(job->manager, &volume, false, &chain, err);
    return r < 0 ? r : blk_worker_shrink(&worker, chain.layers, chain.count, &shrink, err);
}

static int step_shrink_check(struct job *job, struct error *err)
{
    int r = run_worker(job, true, err);
    return r < 0 ? error_prefix(err, "volume '%s' cannot become smaller", job->record.volume_name) : 0;
}

static int step_shrink_image(struct job *job, struct error *err)
{
    return run_worker(job, false, err);
}

static int step_shrink_record(struct job *job, struct error *err)
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
        r = catalogue_layer_update(m->catalogue, &layer, err);
    }
    if (r == 0)
        r = catalogue_volume_update(m->catalogue, &volume, err);
    return transaction_end(m, r, err);
}

static const struct job_step shrink_steps[] = {
    {.name = "check", .run = step_shrink_check},
    {.name = "image", .run = step_shrink_image, .final = true},
    {.name = "record", .run = step_shrink_record, .final = true},
    {.name = "sidecar", .run = step_sidecar, .final = true},
};

static int finish_shrink(struct job *job, struct error *err)
{
    (void)err;
    event_record(
        job->manager, "volume.resized", job->record.volume_id,
        json_pack("{s:s, s:I}", "name", job->record.volume_name, "size", (json_int_t)job_get_number(job, "size")));
    return 0;
}

static int abandon_shrink(struct job *job, const struct error *cause, bool undone, struct error *err)
{
    (void)job, (void)cause, (void)undone, (void)err;
    return 0;
}

const struct job_kind job_volume_shrink = {
    .name = "volume-shrink",
    .steps = shrink_steps,
    .step_count = ARRAY_SIZE(shrink_steps),
    .finish = finish_shrink,
    .abandon = abandon_shrink,
};
