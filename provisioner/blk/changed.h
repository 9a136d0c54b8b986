/* SPDX-License-Identifier: Apache-2.0 */
/* Lists of what changed in an image (backends/format/changed.h), page by page. */
#ifndef PLATTER_PROVISIONER_BLK_CHANGED_H
#define PLATTER_PROVISIONER_BLK_CHANGED_H

#include "backends/format/image.h"
#include "provisioner/blk/convert.h"

struct changed_range {
    uint64_t offset; /* bytes */
    uint64_t length;
    bool zero; /* reads as zeros without looking at data */
};

struct changed_page {
    struct changed_range *ranges; /* the caller's array */
    size_t max;                   /* entries in it, at least one */
    size_t count;                 /* entries filled: ascending, neighbours of one kind merged */
    uint64_t next;                /* all before it is told: where the next page begins; the image's size at the end */
};

/* From `offset` on, what the upper `layers` layers hold; 0 = all layers: what is allocated. Blocks. `progress` may be
 * NULL. -EINVAL: there are not so many layers, or the offset is beyond the end. */
int changed_list(struct image *image, uint32_t layers, uint64_t offset, struct convert_progress *progress,
                 struct changed_page *page, struct error *err);

#endif
