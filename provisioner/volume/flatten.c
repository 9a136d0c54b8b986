// SPDX-License-Identifier: Apache-2.0
#include "provisioner/volume/flatten.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/text.h"
#include "provisioner/volume/chain.h"
#include "provisioner/volume/snapshot.h"

bool flatten_wanted(struct manager *m, const struct volume_record *volume, size_t limit)
{
    CLEANUP_FREE struct layer_record *layers = NULL;
    size_t count = 0;
    return catalogue_layer_chain(m->catalogue, volume->top_layer, &layers, &count, NULL) == 0 && count >= limit;
}

/* A row for the copy, of what `below` (a view with the layer below the top as its own) reads as. */
static int insert_copy(struct job *job, const struct volume_record *below, uint64_t size, struct layer_record *ret_copy,
                       struct error *err)
{
    static const struct layer_record nothing = {0};
    int r = overlay_fill(below, &nothing, size, ret_copy, err);
    if (r < 0)
        return r;
    ret_copy->frozen = true;
    return catalogue_layer_insert(job->manager->catalogue, ret_copy, err);
}

static int fill_copy(struct job *job, const struct volume_record *below, const struct layer_record *copy,
                     struct error *err)
{
    CLEANUP_CHAIN struct chain chain = {0};
    CLEANUP_CLOSE int fd = -1;
    struct blk_worker worker = job_worker(job);
    struct blk_create to = {
        .format = copy->format,
        .cluster_size = copy->cluster_size,
        .version = copy->version,
        .extended_l2 = copy->extended_l2,
        .compression = copy->compression,
        .refcount_bits = copy->refcount_bits,
    };
    uint64_t bytes;
    int r = chain_open(job->manager, below, true, &chain, err);
    if (r == 0)
        r = layer_file_create(job->manager, copy, &fd, err);
    return r < 0 ? r : blk_worker_convert(&worker, chain.layers, chain.count, fd, &to, &bytes, err);
}

static int move_top(struct job *job, const char *top, const struct layer_record *copy, struct error *err)
{
    struct catalogue *c = job->manager->catalogue;
    struct layer_record layer = {0};
    int r = catalogue_begin(c, err);
    if (r < 0)
        return r;
    r = catalogue_layer_find(c, top, &layer, err);
    if (r == 0) {
        text_copy(layer.parent_id, copy->id);
        r = catalogue_layer_update(c, &layer, err);
    }
    return transaction_end(job->manager, r, err);
}

int flatten(struct job *job, struct error *err)
{
    struct volume_record volume = {0};
    struct layer_record top = {0}, parent = {0}, copy = {0};
    struct catalogue *c = job->manager->catalogue;
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = catalogue_layer_find(c, volume.top_layer, &top, err);
    if (r == 0)
        r = catalogue_layer_find(c, top.parent_id, &parent, err);
    if (r < 0)
        return r;
    struct volume_record below = volume;
    text_copy(below.top_layer, parent.id);
    r = insert_copy(job, &below, parent.size, &copy, err);
    if (r == 0)
        r = fill_copy(job, &below, &copy, err);
    crash_point(job->kind->name, "flatten", "");
    return r < 0 ? r : move_top(job, top.id, &copy, err);
}
