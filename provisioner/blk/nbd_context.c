// SPDX-License-Identifier: Apache-2.0
// NBD metadata contexts: which ones a client asks for, and an image's extents in their terms. Besides base:allocation
// there is one for each layer below the top: what changed since that layer was the top (docs/architecture.md).
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "provisioner/blk/nbd_connection.h"

#define NAMESPACE "x-platter:"
#define CHANGED NAMESPACE "changed-since/"
#define DIGITS_MAX 4u

/* ---- names ---- */

size_t nbd_context_name(uint32_t layers, char name[NBD_CONTEXT_NAME])
{
    int length = layers ? snprintf(name, NBD_CONTEXT_NAME, CHANGED "%u", layers)
                        : snprintf(name, NBD_CONTEXT_NAME, "base:allocation");
    return (size_t)length;
}

static bool equals(const uint8_t *query, uint32_t length, const char *text)
{
    return length == strlen(text) && memcmp(query, text, length) == 0;
}

/* The number behind CHANGED; 0 = it is none. */
static uint32_t changed_layers(const uint8_t *query, uint32_t length)
{
    uint32_t prefix = sizeof(CHANGED) - 1, number = 0;
    if (length <= prefix || length > prefix + DIGITS_MAX || memcmp(query, CHANGED, prefix) != 0 || query[prefix] == '0')
        return 0;
    for (uint32_t i = prefix; i < length; i++) {
        if (query[i] < '0' || query[i] > '9')
            return 0;
        number = number * 10 + query[i] - '0';
    }
    return number;
}

void nbd_context_query(const uint8_t *query, uint32_t length, bool list, struct nbd_contexts *contexts)
{
    uint32_t layers = changed_layers(query, length);
    if (equals(query, length, "base:allocation") || (list && equals(query, length, "base:")))
        contexts->allocation = true;
    if (list && (layers || equals(query, length, NAMESPACE) || equals(query, length, CHANGED)))
        contexts->all_changed = true;
    if (layers && !contexts->changed) /* one for each connection */
        contexts->changed = layers;
}

/* ---- extents ---- */

static uint32_t put_extent(uint8_t *extents, uint32_t count, uint32_t length, uint32_t flags)
{
    uint8_t *last = extents + (size_t)(count - 1) * NBD_EXTENT_SIZE;
    if (count && load_be32(last + 4) == flags) {
        store_be32(last, load_be32(last) + length);
        return count;
    }
    store_be32(extents + (size_t)count * NBD_EXTENT_SIZE, length);
    store_be32(extents + (size_t)count * NBD_EXTENT_SIZE + 4, flags);
    return count + 1;
}

static uint32_t allocation_flags(const struct image_extent *extent)
{
    bool zero = extent->state & IMAGE_EXTENT_ZERO;
    bool hole = zero || !(extent->state & IMAGE_EXTENT_ALLOCATED);
    return (hole ? NBD_STATE_HOLE : 0u) | (zero ? NBD_STATE_ZERO : 0u);
}

static uint32_t changed_flags(enum changed_kind kind)
{
    switch (kind) {
    case CHANGED_DATA:
        return NBD_CHANGED;
    case CHANGED_ZERO:
        return NBD_CHANGED | NBD_CHANGED_ZERO;
    case CHANGED_NOT:
        break;
    }
    return 0;
}

uint32_t nbd_context_extents(const struct nbd_slot *slot)
{
    const struct changed_point *point = &slot->connection->point;
    uint8_t *extents = slot->iov.iov_base;
    uint64_t offset = slot->offset, left = slot->length;
    uint32_t count = 0;
    for (unsigned i = 0; i < slot->status.count; i++) {
        struct image_extent extent;
        memcpy(&extent, extents + i * sizeof(extent), sizeof(extent));
        extent.length = MIN(extent.length, left);
        while (extent.length) {
            uint64_t length = extent.length;
            uint32_t flags = slot->context == NBD_CONTEXT_ALLOCATION
                                 ? allocation_flags(&extent)
                                 : changed_flags(changed_kind(point, offset, &extent, &length));
            count = put_extent(extents, count, (uint32_t)length, flags);
            offset += length;
            left -= length;
            extent.length -= length;
        }
    }
    return slot->flags & NBD_CMD_REQ_ONE ? MIN(count, 1u) : count;
}
