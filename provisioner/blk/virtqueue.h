/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device's side of a split virtqueue (virtio 1.2, section 2.7) in memory that a hostile guest shares.
 *
 * Everything of the guest is read once into local variables, checked, and only then used: indexes against the
 * queue's size, addresses against the memory table for each descriptor, the number of descriptors of a chain
 * against a limit that also ends loops, readable descriptors before writable ones.
 *
 * Threads: one thread at a time. Never blocks, never allocates.
 */
#ifndef PLATTER_PROVISIONER_BLK_VIRTQUEUE_H
#define PLATTER_PROVISIONER_BLK_VIRTQUEUE_H

#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "provisioner/blk/guest_memory.h"

#define VIRTQUEUE_SIZE_MAX 1024
/* Memory pieces of one chain. A guest that keeps SEG_MAX (126) needs 128; the rest is for oddly split headers. */
#define VIRTQUEUE_IOV_MAX 136

/* Full barrier between a store and a later load, seen by the other side of the rings, which is another process. (The
 * older builtin, because the thread sanitizer refuses fences; it cannot see the other side anyway.) */
static inline void virtqueue_barrier(void)
{
    __sync_synchronize();
}

struct virtqueue_addresses {
    uint64_t descriptors, available, used; /* in the front-end's address space */
};

struct virtqueue {
    const struct guest_memory *memory;
    struct vring_desc *descriptors;
    struct vring_avail *available;
    struct vring_used *used;
    uint16_t size;           /* power of two, at most VIRTQUEUE_SIZE_MAX */
    uint16_t last_available; /* next index to take */
    uint16_t used_next;      /* next index to fill */
    uint16_t used_published; /* what the guest has been told */
    bool event_index;        /* VIRTIO_RING_F_EVENT_IDX negotiated */
    bool indirect;           /* VIRTIO_RING_F_INDIRECT_DESC negotiated */
};

/* One request as the guest described it: readable pieces first in iov, then writable ones. */
struct virtqueue_chain {
    uint16_t head;
    struct iovec *iov; /* the caller's, VIRTQUEUE_IOV_MAX entries */
    unsigned readable; /* entries */
    unsigned writable; /* entries, behind the readable ones */
    uint64_t readable_bytes, writable_bytes;
};

/* Prepare a queue. Takes last_available from `base` and the used index from the guest's ring. -EINVAL for a bad size
 * or misaligned rings, -EFAULT for rings outside of memory. */
int virtqueue_start(struct virtqueue *queue, const struct guest_memory *memory, uint16_t size,
                    const struct virtqueue_addresses *addresses, uint64_t features, uint16_t base);

/* The used index that the guest's ring shows. */
uint16_t virtqueue_guest_used(const struct virtqueue *queue);

/* Take the next available head. 1 = *ret_head, 0 = none, -EPROTO = the ring makes no sense. */
int virtqueue_next(struct virtqueue *queue, uint16_t *ret_head);

/* Read the chain of `head` into chain->iov. -EPROTO, -EFAULT or -E2BIG when it makes no sense. */
int virtqueue_read(const struct virtqueue *queue, uint16_t head, struct virtqueue_chain *chain);

/* Note `head` as used with `written` bytes. The guest learns of it by virtqueue_publish. */
void virtqueue_push(struct virtqueue *queue, uint16_t head, uint32_t written);

/* Show the guest all that was pushed. True when it wants to be notified. */
bool virtqueue_publish(struct virtqueue *queue);

/* Ask for a kick at the next available buffer. True when there is one already: then no kick may come. */
bool virtqueue_want_kick(struct virtqueue *queue);

#endif
