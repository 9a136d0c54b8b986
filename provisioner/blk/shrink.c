// SPDX-License-Identifier: Apache-2.0
#include "provisioner/blk/shrink.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "provisioner/blk/blocking.h"
#include "provisioner/blk/content.h"

enum { PIECE = 1 << 20, ZEROES = 1 << 30 };

static void end_blocking(struct blocking **b)
{
    (void)blocking_destroy(*b);
}

static int check_content(struct blocking *b, uint8_t *buffer, uint64_t old, uint64_t size, bool *ret_known,
                         struct error *err)
{
    struct content content;
    size_t length = MIN(old, (uint64_t)CONTENT_HEAD);
    int r = blocking_read(b, buffer, length, 0);
    if (r < 0)
        return error_sys(err, r, "read the begin of the image");
    content_find(buffer, length, &content);
    *ret_known = content.name != NULL;
    if (!content.name || content.end <= size)
        return 0;
    if (content.end == UINT64_MAX)
        (void)error_set(err, EOPNOTSUPP, "how much of the image its %s needs cannot be told", content.name);
    else
        (void)error_set(err, EOPNOTSUPP, "its %s needs %ju bytes, more than %ju", content.name, (uintmax_t)content.end,
                        (uintmax_t)size);
    (void)error_hint(err, "make the file system or the partitions smaller first");
    return error_code(err, "content-beyond");
}

/* Read [*offset, ...) up to the first byte that is not zero, or to `end`; what is known to be zeros is not read. */
static int find_data(struct blocking *b, uint8_t *buffer, uint64_t *offset, uint64_t end)
{
    while (*offset < end) {
        struct image_extent extent = {0};
        int r = blocking_status(b, *offset, MIN(end - *offset, (uint64_t)ZEROES), &extent);
        if (r < 0)
            return r;
        if (extent.length == 0)
            return -EIO;
        if (extent.state & IMAGE_EXTENT_ZERO) {
            *offset += extent.length;
            continue;
        }
        size_t length = MIN(extent.length, (uint64_t)PIECE);
        r = blocking_read(b, buffer, length, *offset);
        if (r < 0)
            return r;
        size_t zeros = 0;
        while (zeros < length && buffer[zeros] == 0)
            zeros++;
        *offset += zeros;
        if (zeros < length)
            return 0;
    }
    return 0;
}

static int check_tail(struct blocking *b, uint8_t *buffer, uint64_t size, uint64_t old, struct error *err)
{
    uint64_t offset = size;
    int r = find_data(b, buffer, &offset, old);
    if (r < 0)
        return error_sys(err, r, "read the image at %ju", (uintmax_t)offset);
    if (offset >= old)
        return 0;
    (void)error_set(err, EOPNOTSUPP, "there is data at byte %ju, beyond %ju", (uintmax_t)offset, (uintmax_t)size);
    (void)error_hint(err, "--discard-data lets go of all that lies beyond");
    return error_code(err, "data-beyond");
}

int shrink_check(struct image *image, uint64_t size, bool discard_data, struct error *err)
{
    struct image_geometry geometry;
    bool known = false;
    CLEANUP(end_blocking) struct blocking *b = NULL;
    CLEANUP_FREE uint8_t *buffer = aligned_alloc(4096, PIECE);
    image_geometry(image, &geometry);
    if (!buffer)
        return error_sys(err, ENOMEM, "look at the image");
    if (geometry.size <= size)
        return 0;
    int r = blocking_create(image, &b, err);
    if (r == 0)
        r = check_content(b, buffer, geometry.size, size, &known, err);
    if (r == 0 && !known && !discard_data)
        r = check_tail(b, buffer, size, geometry.size, err);
    return r;
}

static int zero_tail(struct blocking *b, uint64_t size, uint64_t old, struct convert_progress *progress)
{
    for (uint64_t offset = size; offset < old;) {
        uint64_t length = MIN(old - offset, (uint64_t)ZEROES);
        int r = blocking_zeroes(b, offset, length);
        if (r < 0)
            return r;
        offset += length;
        if (progress && progress->report)
            r = progress->report(progress, offset - size, old - size);
        if (r < 0)
            return r;
    }
    return blocking_flush(b);
}

int shrink_image(struct image *image, uint64_t size, struct convert_progress *progress, struct error *err)
{
    struct image_geometry geometry;
    struct blocking *b = NULL;
    image_geometry(image, &geometry);
    if (geometry.size <= size)
        return 0;
    int r = blocking_create(image, &b, err);
    if (r < 0)
        return r;
    r = zero_tail(b, size, geometry.size, progress);
    (void)blocking_destroy(b);
    return r < 0 ? error_sys(err, r, "give back what lies beyond %ju", (uintmax_t)size)
                 : image_shrink(image, size, err);
}
