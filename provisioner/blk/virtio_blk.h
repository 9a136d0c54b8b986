/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-blk (virtio 1.2, section 5.2): the features and the configuration space of a volume, and the translation of a
 * request chain into an image request. Knows nothing of rings, sockets or threads; pure functions of their arguments.
 */
#ifndef PLATTER_PROVISIONER_BLK_VIRTIO_BLK_H
#define PLATTER_PROVISIONER_BLK_VIRTIO_BLK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backends/format/image.h"
#include "provisioner/blk/virtqueue.h"

#define VIRTIO_BLK_SECTOR 512
#define VIRTIO_BLK_SEG_MAX 126
#define VIRTIO_BLK_SERIAL_BYTES 20
#define VIRTIO_BLK_CONFIG_BYTES 60 /* up to write_zeroes_may_unmap and its padding */

/* The volume as the guest shall see it. */
struct virtio_blk_volume {
    struct image_geometry geometry;
    bool read_only;
    unsigned queues;
    char serial[VIRTIO_BLK_SERIAL_BYTES]; /* padded with NUL, not terminated when full */
};

/* The virtio-blk bits to offer (no transport or ring features). */
uint64_t virtio_blk_features(const struct virtio_blk_volume *volume);

/* Fill the configuration space; `size` is the volume's current size in bytes. */
void virtio_blk_config(const struct virtio_blk_volume *volume, uint64_t size, bool write_cache,
                       uint8_t ret_config[VIRTIO_BLK_CONFIG_BYTES]);
/* The offset of the one byte that a driver may write. */
size_t virtio_blk_config_wce_offset(void);

/* What requests are judged by. */
struct virtio_blk_rules {
    const struct virtio_blk_volume *volume;
    uint64_t features; /* negotiated */
    bool write_through;
};

/* Translate `chain`. Fills op, flags, offset, length, iov and iovcnt of `request` and gives the address of the status
 * byte. Consumes header and status from chain->iov in place.
 * 1: submit the request. 0: answer at once with *ret_answer (VIRTIO_BLK_S_*); a GET_ID was copied.
 * -EPROTO: there is no header or no room for a status. */
int virtio_blk_translate(const struct virtio_blk_rules *rules, struct virtqueue_chain *chain,
                         struct image_request *request, uint8_t **ret_status, uint8_t *ret_answer);

/* The status for an image request's result. */
uint8_t virtio_blk_status(int result);

#endif
