// SPDX-License-Identifier: Apache-2.0
/* New layers above frozen ones: what snapshots, clones and restores have in common. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "common/text.h"
#include "provisioner/node/image_lock.h"
#include "provisioner/volume/snapshot.h"

#define OVERLAY_CLUSTER 65536

int overlay_fill(const struct volume_record *volume, const struct layer_record *parent, uint64_t size,
                 struct layer_record *ret_layer, struct error *err)
{
    struct layer_record layer = {
        .size = size,
        .cluster_size = OVERLAY_CLUSTER,
        .version = 3,
        .refcount_bits = 16,
        .extended_l2 = true,
        .created = time(NULL),
    };
    int r = catalogue_id("lay-", layer.id);
    if (r < 0)
        return error_sys(err, r, "new layer");
    text_copy(layer.volume_id, volume->id);
    text_copy(layer.pool_id, volume->pool_id);
    text_copy(layer.parent_id, parent->id);
    text_copy(layer.format, "qcow2");
    text_copy(layer.compression, "zlib");
    *ret_layer = layer;
    return 0;
}

int overlay_check(struct manager *m, const char *parent_id, struct error *err)
{
    CLEANUP_FREE struct layer_record *layers = NULL;
    size_t count = 0;
    int r = catalogue_layer_chain(m->catalogue, parent_id, &layers, &count, err);
    if (r < 0)
        return r;
    if (count < BLK_LAYERS_MAX)
        return 0;
    (void)error_set(err, E2BIG, "there are %zu layers already, as many as one image can have", count);
    (void)error_hint(err, "detach the volume: then its chain is made shorter; or delete snapshots");
    return error_code(err, "chain-too-long");
}

static int overlay_layer(const struct job *job, struct layer_record *ret_layer, struct error *err)
{
    return catalogue_layer_find(job->manager->catalogue, job_get(job, "layer"), ret_layer, err);
}

int step_overlay_file(struct job *job, struct error *err)
{
    struct layer_record layer = {0};
    CLEANUP_CLOSE int fd = -1;
    int r = overlay_layer(job, &layer, err);
    return r < 0 ? r : layer_file_create(job->manager, &layer, &fd, err);
}

int undo_overlay_file(struct job *job, struct error *err)
{
    struct layer_record layer = {0};
    int r = overlay_layer(job, &layer, err);
    return r < 0 ? r : layer_file_delete(job->manager, &layer, err);
}

int step_overlay_image(struct job *job, struct error *err)
{
    struct layer_record layer = {0}, parent = {0};
    char backing[ID_MAX + 8];
    CLEANUP_CLOSE int fd = -1;
    int r = overlay_layer(job, &layer, err);
    if (r == 0)
        r = catalogue_layer_find(job->manager->catalogue, layer.parent_id, &parent, err);
    if (r == 0)
        r = layer_file_create(job->manager, &layer, &fd, err); /* empty, also when a run before this one filled it */
    if (r < 0)
        return r;
    (void)snprintf(backing, sizeof(backing), "%s.img", parent.id); /* for other programs; ours go by the catalogue */
    struct blk_worker worker = job_worker(job);
    struct blk_create create = {
        .format = layer.format,
        .size = layer.size,
        .cluster_size = layer.cluster_size,
        .version = layer.version,
        .extended_l2 = layer.extended_l2,
        .compression = layer.compression,
        .refcount_bits = layer.refcount_bits,
        .backing = backing,
        .backing_format = parent.format,
    };
    return blk_worker_create(&worker, fd, &create, err);
}
