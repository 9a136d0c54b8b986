// SPDX-License-Identifier: Apache-2.0
/* See bitmaps.h: a walk over the bitmap directory that trusts none of its lengths. */
#include "backends/format/qcow2/bitmaps.h"

#include <errno.h>
#include <stdlib.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "common/cleanup.h"

#define DIRECTORY_MAX (4 * MIB)
#define ENTRY_FIXED 24u
#define FLAGS_AT 12u
#define FLAG_IN_USE 1u

/* Sets the flag in each entry of `directory`. */
static int mark_entries(uint8_t *directory, uint64_t length, uint32_t count)
{
    uint64_t at = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (!range_within(at, ENTRY_FIXED, length))
            return -EUCLEAN;
        uint8_t *entry = directory + at;
        uint64_t size = ENTRY_FIXED + (uint64_t)load_be16(entry + 18) + load_be32(entry + 20);
        if (!range_within(at, size, length))
            return -EUCLEAN;
        store_be32(entry + FLAGS_AT, load_be32(entry + FLAGS_AT) | FLAG_IN_USE);
        at += align_up(size, 8);
    }
    return at == length ? 0 : -EUCLEAN;
}

int bitmaps_mark_in_use(struct qcow2 *q)
{
    size_t extension_length = 0;
    const uint8_t *extension = header_extension(&q->header, QCOW2_EXTENSION_BITMAPS, &extension_length);
    if (!extension || extension_length < 24)
        return -EUCLEAN;
    uint64_t length = load_be64(extension + 8);
    uint64_t offset = load_be64(extension + 16);
    if (length == 0 || length > DIRECTORY_MAX || offset < q->cluster_size ||
        !range_within(offset, length, q->file_length_at_open))
        return -EUCLEAN;
    CLEANUP_FREE uint8_t *directory = aligned_alloc(4096, align_up(length, 4096));
    if (!directory)
        return -ENOMEM;
    int r = io_file_read(q->base.file, directory, length, offset);
    if (r == 0)
        r = mark_entries(directory, length, load_be32(extension));
    if (r == 0)
        r = io_file_write(q->base.file, directory, length, offset);
    return r < 0 ? r : io_file_flush(q->base.file);
}
