// SPDX-License-Identifier: Apache-2.0
#include "provisioner/volume/chain.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "provisioner/node/image_lock.h"
#include "provisioner/volume/snapshot.h"

void chain_done(struct chain *chain)
{
    for (size_t i = 0; i < chain->count; i++) {
        int fd = chain->layers[i].fd;
        cleanup_close(&fd);
    }
    free(chain->records);
    *chain = (struct chain){0};
}

static int chain_open_layer(struct manager *m, const struct volume_record *volume, const struct layer_record *record,
                            bool read_only, struct blk_layer *ret_layer, struct error *err)
{
    CLEANUP_POOL struct pool *pool = NULL;
    CLEANUP_CLOSE int fd = -1;
    int r = manager_pool_open(m, record->pool_id, &pool, err);
    if (r == 0)
        r = pool->ops->image_open(pool, record->id, read_only, &fd, err);
    if (r < 0)
        return r;
    r = image_lock_take(fd, read_only ? IMAGE_LOCK_READER : IMAGE_LOCK_WRITER, volume->name, err);
    if (r == -EBUSY) {
        (void)error_holder(err, "another program that has the image file open");
        return error_code(err, "volume-in-use");
    }
    if (r < 0)
        return r;
    *ret_layer = (struct blk_layer){.format = record->format, .fd = steal_fd(&fd)};
    return 0;
}

int chain_open(struct manager *m, const struct volume_record *volume, bool read_only, struct chain *ret_chain,
               struct error *err)
{
    CLEANUP_CHAIN struct chain chain = {0};
    size_t count = 0;
    int r = catalogue_layer_chain(m->catalogue, volume->top_layer, &chain.records, &count, err);
    if (r < 0)
        return r;
    if (merge_give_way(m, chain.records, count, volume->id)) { /* which may have changed it */
        free(chain.records);
        chain.records = NULL;
        r = catalogue_layer_chain(m->catalogue, volume->top_layer, &chain.records, &count, err);
        if (r < 0)
            return r;
    }
    if (count == 0 || count > BLK_LAYERS_MAX)
        return error_set(err, EUCLEAN, "volume '%s' has %zu layers", volume->name, count);
    for (; chain.count < count; chain.count++) {
        r = chain_open_layer(m, volume, &chain.records[chain.count], read_only || chain.count > 0,
                             &chain.layers[chain.count], err);
        if (r < 0)
            return r;
    }
    *ret_chain = chain;
    chain = (struct chain){0};
    return 0;
}
