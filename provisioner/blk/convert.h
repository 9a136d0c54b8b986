/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copying one image into another, at full speed on one thread: many reads and writes in flight on one loop, holes and
 * zeros skipped.
 */
#ifndef PLATTER_PROVISIONER_BLK_CONVERT_H
#define PLATTER_PROVISIONER_BLK_CONVERT_H

#include "backends/format/image.h"

struct convert_progress {
    /* Now and then, on the calling thread. An error ends the copy. NULL = not wanted. */
    int (*report)(struct convert_progress *progress, uint64_t done, uint64_t total);
};

/* Copy all that `source` reads as into `target`, which is at least as large, reads as zeros, and is written by nobody
 * else. Flushes. `ret_bytes`: bytes of data written. Blocks. */
int convert_copy(struct image *source, struct image *target, struct convert_progress *progress, uint64_t *ret_bytes,
                 struct error *err);

#endif
