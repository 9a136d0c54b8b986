// SPDX-License-Identifier: Apache-2.0
#include "provisioner/volume/reflink.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "common/text.h"
#include "provisioner/node/copy.h"
#include "provisioner/volume/chain.h"

#define QUICK_EXTENTS_MAX 8192 /* XFS and btrfs take some 25 us for each */

int reflink_possible(struct manager *m, const char *layer, bool *ret_possible, struct error *err)
{
    struct layer_record record = {0};
    CLEANUP_POOL struct pool *pool = NULL;
    *ret_possible = false;
    int r = catalogue_layer_find(m->catalogue, layer, &record, err);
    if (r < 0 || strcmp(record.format, "raw") != 0 || record.parent_id[0])
        return r;
    r = manager_pool_open(m, record.pool_id, &pool, err);
    return r < 0 ? r : pool->ops->reflinks(pool, ret_possible, err);
}

int reflink_quick(struct manager *m, const char *layer, bool *ret_quick, struct error *err)
{
    struct layer_record record = {0};
    CLEANUP_POOL struct pool *pool = NULL;
    CLEANUP_CLOSE int fd = -1;
    int r = catalogue_layer_find(m->catalogue, layer, &record, err);
    if (r == 0)
        r = manager_pool_open(m, record.pool_id, &pool, err);
    if (r == 0)
        r = pool->ops->image_open(pool, record.id, true, &fd, err);
    if (r == 0)
        *ret_quick = copy_extents(fd) <= QUICK_EXTENTS_MAX;
    return r;
}

int reflink_fill(const struct volume_record *volume, const char *source, uint64_t size, struct layer_record *ret_layer,
                 struct error *err)
{
    struct layer_record layer = {.size = size, .created = time(NULL)};
    int r = catalogue_id("lay-", layer.id);
    if (r < 0)
        return error_sys(err, r, "new layer");
    text_copy(layer.volume_id, volume->id);
    text_copy(layer.pool_id, volume->pool_id);
    text_copy_bounded(layer.parent_id, sizeof(layer.parent_id), source);
    text_copy(layer.format, "raw");
    *ret_layer = layer;
    return 0;
}

/* The source's file, with a reader's lock if that is asked for. Its lock goes with the chain. */
static int open_source(struct job *job, bool locked, struct chain *ret_chain, int *ret_fd, struct error *err)
{
    struct volume_record view = {0};
    struct layer_record source = {0};
    CLEANUP_POOL struct pool *pool = NULL;
    int r = catalogue_layer_find(job->manager->catalogue, job_get(job, "source"), &source, err);
    if (r == 0)
        r = manager_pool_open(job->manager, source.pool_id, &pool, err);
    if (r == 0)
        r = pool->ops->image_open(pool, source.id, true, ret_fd, err);
    if (r < 0 || !locked)
        return r;
    text_copy(view.id, job->record.volume_id);
    text_copy_bounded(view.name, sizeof(view.name), job->record.volume_name);
    text_copy(view.top_layer, source.id);
    return chain_open(job->manager, &view, true, ret_chain, err);
}

int reflink_copy(struct job *job, bool locked, struct error *err)
{
    CLEANUP_CHAIN struct chain chain = {0};
    CLEANUP_CLOSE int from = -1;
    CLEANUP_CLOSE int to = -1;
    struct layer_record layer = {0};
    int r = catalogue_layer_find(job->manager->catalogue, job_get(job, "layer"), &layer, err);
    if (r == 0)
        r = open_source(job, locked, &chain, &from, err);
    if (r == 0)
        r = layer_file_create(job->manager, &layer, &to, err); /* empty, also when a run before this one filled it */
    return r < 0 ? r : copy_reflink(from, to, layer.size, err);
}

int reflink_release(const struct job *job, struct error *err)
{
    struct catalogue *c = job->manager->catalogue;
    struct layer_record layer = {0};
    int r = catalogue_layer_find(c, job_get(job, "layer"), &layer, err);
    if (r < 0)
        return r;
    layer.parent_id[0] = '\0';
    return catalogue_layer_update(c, &layer, err);
}

int layer_drop_unneeded(struct job *job, const char *layer, struct error *err)
{
    struct catalogue *c = job->manager->catalogue;
    struct layer_record record = {0};
    struct layer_use use = {0};
    int r = catalogue_layer_find(c, layer, &record, NULL);
    if (r == -ENOENT) /* gone already */
        return 0;
    r = catalogue_layer_use(c, &record, &use, err);
    if (r < 0 || use.children || use.tops || use.snapshots)
        return r;
    r = layer_file_delete(job->manager, &record, err);
    crash_point(job->kind->name, "drop", "");
    return r < 0 ? r : catalogue_layer_delete(c, record.id, err);
}
