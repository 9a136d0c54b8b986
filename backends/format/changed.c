// SPDX-License-Identifier: Apache-2.0
#include "backends/format/changed.h"

#include <errno.h>

#include "backends/format/core.h"
#include "common/checked.h"
#include "common/cleanup.h"

int changed_point(const struct image *image, uint32_t layers, struct changed_point *ret_point, struct error *err)
{
    LOCK_SCOPE(&((struct image *)image)->lock);
    if (layers > image->count)
        return error_set(err, EINVAL, "the image has %zu layers, not %u", image->count, layers);
    if (layers == 0 || layers == image->count) {
        *ret_point = (struct changed_point){0};
        return 0;
    }
    const struct layer *layer = image->layers[layers];
    *ret_point = (struct changed_point){.serial = layer->serial, .size = layer->size};
    return 0;
}

int changed_depth(const struct image *image, const struct changed_point *point, uint32_t *ret_layers)
{
    if (point->serial == 0) {
        *ret_layers = 0;
        return 0;
    }
    LOCK_SCOPE(&((struct image *)image)->lock);
    for (uint32_t i = 1; i < image->count; i++) {
        if (image->layers[i]->serial == point->serial) {
            *ret_layers = i;
            return 0;
        }
    }
    return -ESTALE;
}

enum changed_kind changed_kind(const struct changed_point *point, uint64_t offset, const struct image_extent *extent,
                               uint64_t *ret_length)
{
    *ret_length = extent->length;
    if (extent->state & IMAGE_EXTENT_ABSENT) {
        if (offset >= point->size)
            return CHANGED_ZERO;
        *ret_length = MIN(extent->length, point->size - offset);
        return CHANGED_NOT;
    }
    if (extent->state & IMAGE_EXTENT_ALLOCATED)
        return extent->state & IMAGE_EXTENT_ZERO ? CHANGED_ZERO : CHANGED_DATA;
    /* A hole that hides what lies below: one of the layers was shorter. With all layers asked, nothing is there. */
    return point->serial ? CHANGED_ZERO : CHANGED_NOT;
}
