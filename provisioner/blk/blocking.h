/* SPDX-License-Identifier: Apache-2.0 */
/* Single requests to an open image from a thread that has no loop, waiting for each: flushes, a look at a few bytes. */
#ifndef PLATTER_PROVISIONER_BLK_BLOCKING_H
#define PLATTER_PROVISIONER_BLK_BLOCKING_H

#include "backends/format/image.h"

struct blocking; /* a loop with one queue, to be used and destroyed by the thread that created it */

int blocking_create(struct image *image, struct blocking **ret_blocking, struct error *err);
struct blocking *blocking_destroy(struct blocking *blocking);

/* 0 or -errno, as image_submit gives. */
int blocking_read(struct blocking *blocking, void *buffer, size_t length, uint64_t offset);
int blocking_write(struct blocking *blocking, const void *buffer, size_t length, uint64_t offset);
int blocking_flush(struct blocking *blocking);
/* Zeros that may give their space back. */
int blocking_zeroes(struct blocking *blocking, uint64_t offset, uint64_t length);
/* The first run of equal state from `offset` on, within `length`. */
int blocking_status(struct blocking *blocking, uint64_t offset, uint64_t length, struct image_extent *ret_extent);
/* The same for as many runs as `status` has room for, looking at the upper `layers` layers only (0 = all). */
int blocking_map(struct blocking *blocking, uint64_t offset, uint64_t length, uint32_t layers,
                 struct image_status *status);

/* All in one, for a single flush. */
int blocking_flush_once(struct image *image, struct error *err);

#endif
