/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vhost-user-blk device: what one front-end has set up, and the effect of each of its messages.
 *
 * Threads: the export's control thread. Memory, features and addresses change only while the rings concerned are
 * stopped; a message that changes them stops the rings, waits for their requests in flight, and starts them again.
 */
#ifndef PLATTER_PROVISIONER_BLK_VHOST_USER_DEVICE_H
#define PLATTER_PROVISIONER_BLK_VHOST_USER_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "provisioner/blk/guest_memory.h"
#include "provisioner/blk/vhost_user_inflight.h"
#include "provisioner/blk/vhost_user_message.h"
#include "provisioner/blk/vhost_user_ring.h"
#include "provisioner/blk/virtio_blk.h"

#define VHOST_USER_QUEUES_MAX 64

struct vhost_user_device {
    struct virtio_blk_volume volume; /* constant while the export lives */
    struct vhost_user_ring *rings;   /* volume.queues of them */
    uint64_t size;                   /* bytes; atomic: any thread may raise it */

    struct guest_memory memory;
    struct inflight_region inflight;
    uint64_t features;
    uint64_t protocol_features;
    bool write_cache; /* atomic: I/O threads read it */
    int backend_fd;   /* the channel on which we speak first; -1 = none */
};

/* `rings` are created and outlive the device. */
void vhost_user_device_init(struct vhost_user_device *device, const struct virtio_blk_volume *volume,
                            struct vhost_user_ring *rings);

/* Act on `message` and send on `socket` what it asks for. Takes its descriptors or closes them. An error means that
 * the connection is of no more use. May wait for requests in flight. */
int vhost_user_device_handle(struct vhost_user_device *device, int socket, struct vhost_user_message *message);

/* Tell the front-end that the configuration space changed, if it listens. */
void vhost_user_device_announce(struct vhost_user_device *device);

/* The front-end is gone: stop the rings, drop its memory and descriptors. */
void vhost_user_device_reset(struct vhost_user_device *device);

#endif
