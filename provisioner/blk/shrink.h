/* SPDX-License-Identifier: Apache-2.0 */
/* Making an image smaller, when nothing that matters stands in the way. */
#ifndef PLATTER_PROVISIONER_BLK_SHRINK_H
#define PLATTER_PROVISIONER_BLK_SHRINK_H

#include "backends/format/image.h"
#include "provisioner/blk/convert.h"

/* May the image, open without queues, be cut at `size`? A known file system or partition table (content.h) that needs
 * what lies beyond is in the way (-EOPNOTSUPP, code "content-beyond"). Otherwise, where the content is not known, whatever is
 * not zeros there is (-EOPNOTSUPP, code "data-beyond"), unless `discard_data`. Only reads. Blocks. */
int shrink_check(struct image *image, uint64_t size, bool discard_data, struct error *err);

/* Give back what lies beyond `size`, then cut. Killed in between, the image has its old size and zeros at its end; the
 * same again ends it. A size that the image has already: nothing to do. Blocks; `progress` may be NULL. */
int shrink_image(struct image *image, uint64_t size, struct convert_progress *progress, struct error *err);

#endif
