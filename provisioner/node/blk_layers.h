/* SPDX-License-Identifier: Apache-2.0 */
/* Requests to platter-blk that name layers. For blk_client.c and blk_worker.c only. */
#ifndef PLATTER_PROVISIONER_NODE_BLK_LAYERS_H
#define PLATTER_PROVISIONER_NODE_BLK_LAYERS_H

#include "provisioner/node/blk_client.h"

/* [{format}...] as a new reference, NULL without memory; the descriptors go to ret_fds[0..count). */
static inline json_t *blk_layers_pack(const struct blk_layer *layers, size_t count, int *ret_fds)
{
    json_t *list = json_array();
    for (size_t i = 0; list && i < count; i++) {
        ret_fds[i] = layers[i].fd;
        if (json_array_append_new(list, json_pack("{s:s}", "format", layers[i].format)) < 0) {
            json_decref(list);
            list = NULL;
        }
    }
    return list;
}

#endif
