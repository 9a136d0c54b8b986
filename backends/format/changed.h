/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What changed in an image since one of its layers was its top: what the layers above that one hold. No bitmap is kept for
 * it; IMAGE_STATUS of so many layers tells, to the subcluster. Never misses a change; what was written with the same
 * bytes again counts as changed.
 *
 * Any thread. Nothing here blocks for longer than the image's lock.
 */
#ifndef PLATTER_BACKENDS_FORMAT_CHANGED_H
#define PLATTER_BACKENDS_FORMAT_CHANGED_H

#include "backends/format/image.h"

/* A moment in an open image's past. Snapshots taken meanwhile do not move it. */
struct changed_point {
    uint64_t serial; /* of the layer that was the top then; 0 = before the first: all that is allocated counts */
    uint64_t size;   /* bytes of the image then */
};

/* The moment before the upper `layers` layers; 0 or all of them = the beginning. -EINVAL: more than there are. */
int changed_point(const struct image *image, uint32_t layers, struct changed_point *ret_point, struct error *err);

/* The `layers` to ask IMAGE_STATUS with. An answer is good when this gives the same before the request was submitted and
 * once it is done. -ESTALE: the layer was merged with another one, so the moment is lost. */
int changed_depth(const struct image *image, const struct changed_point *point, uint32_t *ret_layers);

enum changed_kind { CHANGED_NOT, CHANGED_DATA, CHANGED_ZERO };

/* What the start of `extent`, which IMAGE_STATUS found at `offset`, means: at least one byte, *ret_length of them. Beyond
 * the image's size at `point` all is changed, to zeros where nothing is. */
enum changed_kind changed_kind(const struct changed_point *point, uint64_t offset, const struct image_extent *extent,
                               uint64_t *ret_length);

#endif
