/* SPDX-License-Identifier: Apache-2.0 */
/* A volume's image files, opened and locked. */
#ifndef PLATTER_PROVISIONER_VOLUME_CHAIN_H
#define PLATTER_PROVISIONER_VOLUME_CHAIN_H

#include "common/cleanup.h"
#include "provisioner/node/blk_client.h"
#include "provisioner/volume/manager.h"

struct chain {
    struct layer_record *records; /* top first */
    struct blk_layer layers[BLK_LAYERS_MAX];
    size_t count;
};

/* Open every layer of the volume, the top one for writing unless read_only, and take qemu's image locks. The locks live
 * as long as any duplicate of the descriptors. -EBUSY (code "volume-in-use"): another program has an image open. */
int chain_open(struct manager *manager, const struct volume_record *volume, bool read_only, struct chain *ret_chain,
               struct error *err);
void chain_done(struct chain *chain);
#define CLEANUP_CHAIN CLEANUP(chain_done)

#endif
