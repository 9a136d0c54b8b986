/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory that a vhost-user front-end shares: its table of regions, and the only way from a guest's address to
 * a pointer of ours. Specification: vhost-user, "Memory region description".
 *
 * Threads: loaded and cleared by the control thread while every ring is stopped; looked up by any I/O thread
 * while rings run. Never blocks after loading.
 *
 * A pointer got here stays mapped until the table is cleared. Its content may change under us at any time, and a
 * front-end that truncates its own memory file kills this process by SIGBUS: that costs only its own volume.
 */
#ifndef PLATTER_PROVISIONER_BLK_GUEST_MEMORY_H
#define PLATTER_PROVISIONER_BLK_GUEST_MEMORY_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/error.h"

#define GUEST_MEMORY_REGIONS_MAX 8

/* A region as the front-end describes it. */
struct guest_region_request {
    uint64_t guest;  /* guest physical address */
    uint64_t size;   /* bytes */
    uint64_t user;   /* address in the front-end's own address space: ring addresses are given in it */
    uint64_t offset; /* of the region within the descriptor */
};

struct guest_region {
    uint64_t guest, size, user;
    uint8_t *host; /* our address of the region's first byte */
    void *map;     /* what munmap wants */
    size_t map_size;
};

struct guest_memory {
    unsigned count;
    struct guest_region regions[GUEST_MEMORY_REGIONS_MAX];
};

/* Replace the table: map `count` regions, one descriptor each (still the caller's). On failure the table is empty.
 * -EINVAL for empty, overflowing or overlapping regions and for those that leave their file. */
int guest_memory_load(struct guest_memory *memory, const struct guest_region_request *regions, const int *fds,
                      unsigned count);
void guest_memory_clear(struct guest_memory *memory);

/* Our pointer to [guest, guest + length), which must lie in one region; NULL otherwise. */
void *guest_memory_at(const struct guest_memory *memory, uint64_t guest, uint64_t length);
/* The same for an address of the front-end. */
void *guest_memory_user(const struct guest_memory *memory, uint64_t user, uint64_t length);

/* Describe [guest, guest + length), length > 0, as at most `max` entries of `iov`, one for each region touched.
 * Returns the number of entries, -EFAULT when a byte lies outside the table, -E2BIG when `max` is too small. */
int guest_memory_iov(const struct guest_memory *memory, uint64_t guest, uint64_t length, struct iovec *iov,
                     unsigned max);

#endif
