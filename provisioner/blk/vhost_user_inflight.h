/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The in-flight region of vhost-user ("Inflight I/O tracking", split virtqueues): which requests were taken from the
 * guest and not answered, in memory that the front-end keeps over our death, so that a successor does them again.
 *
 * The region is shared with the front-end: everything read from it is checked. Made and mapped by the control
 * thread; a queue's part is used by its I/O thread.
 */
#ifndef PLATTER_PROVISIONER_BLK_VHOST_USER_INFLIGHT_H
#define PLATTER_PROVISIONER_BLK_VHOST_USER_INFLIGHT_H

#include <stddef.h>
#include <stdint.h>

/* The whole region. All zero = none. */
struct inflight_region {
    void *map;
    size_t map_size;
    uint8_t *base; /* of queue 0 */
    unsigned queues;
    uint16_t queue_size;
};

/* Bytes for that many queues of that size. */
uint64_t inflight_region_size(unsigned queues, uint16_t queue_size);

/* Make a zeroed, sealed memory file of that size. Returns its descriptor or -errno. */
int inflight_region_create(unsigned queues, uint16_t queue_size);

/* Map the region that lies at `offset` of `fd` (still the caller's), in place of the one before. */
int inflight_region_map(struct inflight_region *region, int fd, uint64_t size, uint64_t offset, unsigned queues,
                        uint16_t queue_size);
void inflight_region_unmap(struct inflight_region *region);

struct inflight_shared; /* one queue's part, as the specification lays it out */

struct inflight_queue {
    struct inflight_shared *shared; /* NULL = no tracking; all functions below then do nothing */
    uint16_t size;
    uint64_t counter;
};

/* Attach queue `index`, whose ring has `size` entries and shows `used` as its used index. Finishes what a predecessor
 * left half done, and gives the heads that were in flight, oldest first: at most `size` in `ret_heads`.
 * -EINVAL when the region has no such queue or is of an unknown version. Also with an unmapped region: then 0 heads. */
int inflight_queue_attach(struct inflight_queue *queue, const struct inflight_region *region, unsigned index,
                          uint16_t size, uint16_t used, uint16_t *ret_heads, unsigned *ret_count);

/* `head` was taken from the available ring. */
void inflight_take(struct inflight_queue *queue, uint16_t head);
/* `head` is about to be pushed to the used ring: it joins the batch. */
void inflight_batch(struct inflight_queue *queue, uint16_t head);
/* The used index was published as `used`; then inflight_clear for each head of the batch, then inflight_settle. */
void inflight_clear(struct inflight_queue *queue, uint16_t head);
void inflight_settle(struct inflight_queue *queue, uint16_t used);

#endif
