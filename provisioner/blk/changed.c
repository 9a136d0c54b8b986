// SPDX-License-Identifier: Apache-2.0
#include "provisioner/blk/changed.h"

#include <errno.h>
#include <stdlib.h>

#include "backends/format/changed.h"
#include "common/checked.h"
#include "common/cleanup.h"
#include "provisioner/blk/blocking.h"

enum { EXTENTS = 1024 };

#define WINDOW_BYTES (UINT64_C(64) * GIB) /* of the map, asked for at once */

static void end_blocking(struct blocking **b)
{
    (void)blocking_destroy(*b);
}

/* False when the page is full. */
static bool add_range(struct changed_page *page, uint64_t offset, uint64_t length, bool zero)
{
    struct changed_range *last = page->count ? &page->ranges[page->count - 1] : NULL;
    if (last && last->offset + last->length == offset && last->zero == zero) {
        last->length += length;
        return true;
    }
    if (page->count == page->max)
        return false;
    page->ranges[page->count++] = (struct changed_range){offset, length, zero};
    return true;
}

/* Take over what was found from page->next on. False when the page is full. */
static bool add_extents(struct changed_page *page, const struct changed_point *point, const struct image_status *found)
{
    for (unsigned i = 0; i < found->count; i++) {
        struct image_extent extent = found->extents[i];
        while (extent.length) {
            uint64_t length;
            enum changed_kind kind = changed_kind(point, page->next, &extent, &length);
            if (kind != CHANGED_NOT && !add_range(page, page->next, length, kind == CHANGED_ZERO))
                return false;
            page->next += length;
            extent.length -= length;
        }
    }
    return true;
}

static int fill_page(struct blocking *b, const struct changed_point *point, uint32_t layers, uint64_t size,
                     struct convert_progress *progress, struct changed_page *page)
{
    CLEANUP_FREE struct image_extent *extents = calloc(EXTENTS, sizeof(*extents));
    if (!extents)
        return -ENOMEM;
    while (page->next < size) {
        struct image_status found = {.extents = extents, .max = EXTENTS};
        int r = blocking_map(b, page->next, MIN(size - page->next, WINDOW_BYTES), layers, &found);
        if (r == 0 && found.count == 0)
            r = -EIO; /* the engine promises at least one extent */
        if (r < 0)
            return r;
        if (!add_extents(page, point, &found))
            return 0;
        r = progress && progress->report ? progress->report(progress, page->next, size) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

int changed_list(struct image *image, uint32_t layers, uint64_t offset, struct convert_progress *progress,
                 struct changed_page *page, struct error *err)
{
    CLEANUP(end_blocking) struct blocking *b = NULL;
    struct image_geometry geometry;
    struct changed_point point;
    uint32_t depth = 0;
    int r = changed_point(image, layers, &point, err);
    if (r < 0)
        return r;
    image_geometry(image, &geometry);
    if (offset > geometry.size)
        return error_set(err, EINVAL, "offset %ju is beyond the image's end at %ju", (uintmax_t)offset,
                         (uintmax_t)geometry.size);
    page->count = 0;
    page->next = offset;
    r = blocking_create(image, &b, err);
    if (r < 0)
        return r;
    r = changed_depth(image, &point, &depth);
    if (r == 0)
        r = fill_page(b, &point, depth, geometry.size, progress, page);
    return r < 0 ? error_sys(err, r, "read the map of the image") : 0;
}
