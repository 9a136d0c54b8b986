/* SPDX-License-Identifier: Apache-2.0 */
/* Writing what one layer holds down into the layer below it. */
#ifndef PLATTER_PROVISIONER_BLK_COMMIT_H
#define PLATTER_PROVISIONER_BLK_COMMIT_H

#include "backends/format/image.h"
#include "provisioner/blk/convert.h"

/* Write all that the upper `layers` layers of `upper` (open for reading) hold, data and zeros, into `lower`, which grows to
 * its size. `bytes_per_second` bounds how fast data is copied, 0 = not. Ends with a flush. May be broken off at any moment
 * and done again from the start: `lower` read through `upper` shows the same all the time. `ret_bytes`: bytes of data
 * written. Blocks. */
int commit_layers(struct image *upper, uint32_t layers, struct image *lower, uint64_t bytes_per_second,
                  struct convert_progress *progress, uint64_t *ret_bytes, struct error *err);

#endif
