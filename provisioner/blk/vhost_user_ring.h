/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One ring of the vhost-user export: a virtqueue, its request slots, its kick and call descriptors.
 *
 * A slot belongs to a head descriptor, so a request finds its slot without a search, and a guest that offers a head
 * twice is caught. The memory of the guest is the memory of the request: nothing is copied.
 *
 * Threads: everything here is called by the control thread. A running ring works on its I/O thread: its part of each
 * turn of the loop is to publish what completed, with one notification for the batch, and to take all that is
 * available. Kicks are wanted only when the ring is about to sleep.
 */
#ifndef PLATTER_PROVISIONER_BLK_VHOST_USER_RING_H
#define PLATTER_PROVISIONER_BLK_VHOST_USER_RING_H

#include <stdbool.h>
#include <stdint.h>

#include "provisioner/blk/guest_memory.h"
#include "provisioner/blk/vhost_user_inflight.h"
#include "provisioner/blk/vhost_user_thread.h"
#include "provisioner/blk/virtio_blk.h"
#include "provisioner/blk/virtqueue.h"

struct ring_slot;

struct vhost_user_ring {
    unsigned index;
    struct vhost_user_thread *thread;

    /* As the messages set them; changed only while the ring is stopped. */
    uint16_t size; /* 0 = not set */
    uint16_t base; /* next available index; also the result of a stop */
    bool has_addresses;
    bool enabled;
    struct virtqueue_addresses addresses;
    int kick_fd, call_fd, error_fd; /* -1 = none */
    bool running;

    /* The I/O thread's while running. */
    struct virtqueue queue;
    struct inflight_queue inflight;
    struct virtio_blk_rules rules;
    const bool *write_cache; /* the driver's choice; atomic */
    struct ring_slot *slots; /* size entries, by head */
    struct iovec *iovs;      /* size * VIRTQUEUE_IOV_MAX */
    struct ring_slot *batch; /* pushed, not yet published */
    unsigned in_flight;      /* submitted, not yet pushed */
    unsigned resumed;        /* heads of a predecessor, in slots' resume list */
    uint16_t *resume;
    bool active; /* takes requests: running and not broken */
    struct io_watch kick;
    struct io_hook hook;
    struct vhost_user_call *stopping; /* whom to tell once nothing is in flight */
};

/* What the device gives a ring that starts; stays unchanged while it runs. */
struct vhost_user_ring_context {
    const struct guest_memory *memory;
    const struct inflight_region *inflight;
    const struct virtio_blk_volume *volume;
    const bool *write_cache;
    uint64_t features;
};

/* Tie a new ring to its thread, for both their lives. */
void vhost_user_ring_create(struct vhost_user_ring *ring, unsigned index, struct vhost_user_thread *thread);

/* Begin to serve; resubmits what a predecessor left in flight. -EINVAL, -EFAULT (rings outside of memory), -ENOMEM. */
int vhost_user_ring_start(struct vhost_user_ring *ring, const struct vhost_user_ring_context *context);
/* Take no more and wait for what is in flight. Sets `base`. Nothing happens when it does not run. */
void vhost_user_ring_stop(struct vhost_user_ring *ring);

/* Take `fd` (-1 = none) as call descriptor, also while running, and notify once: a notification that went to the one
 * before may be lost. */
void vhost_user_ring_set_call(struct vhost_user_ring *ring, int fd);

/* Stop it and forget all that messages set. */
void vhost_user_ring_reset(struct vhost_user_ring *ring);

#endif
