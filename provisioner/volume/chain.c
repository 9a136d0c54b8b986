// SPDX-License-Identifier: Apache-2.0
#include "provisioner/volume/chain.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "provisioner/node/image_lock.h"
#include "provisioner/volume/snapshot.h"

enum { LOCK_WAIT_MS = 3000, LOCK_PAUSE_MS = 20 };

void chain_done(struct chain *chain)
{
    for (size_t i = 0; i < chain->count; i++) {
        int fd = chain->layers[i].fd;
        cleanup_close(&fd);
    }
    free(chain->records);
    *chain = (struct chain){0};
}

/* A worker that was ended keeps its files, and with them their locks, until the kernel has taken its ring apart, which is
 * some time after the process is gone. So a lock that is held is asked for again for a while. */
static int take_lock(int fd, enum image_lock_mode mode, const char *name, struct error *err)
{
    const struct timespec pause = {.tv_nsec = LOCK_PAUSE_MS * 1000L * 1000};
    for (unsigned waited = 0; waited < LOCK_WAIT_MS; waited += LOCK_PAUSE_MS) {
        int r = image_lock_take(fd, mode, name, NULL);
        if (r != -EBUSY)
            return r < 0 ? image_lock_take(fd, mode, name, err) : 0; /* with the error's words */
        (void)nanosleep(&pause, NULL);
    }
    return image_lock_take(fd, mode, name, err);
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
    r = take_lock(fd, read_only ? IMAGE_LOCK_READER : IMAGE_LOCK_WRITER, volume->name, err);
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
