// SPDX-License-Identifier: Apache-2.0
/*
 * The clusters of persistent bitmaps (the specification, "Bitmaps extension"): directory, tables and their data. They
 * count as long as the autoclear bit says that they are up to date; without it the extension is a dead letter.
 */
#include "backends/format/qcow2/check.h"
#include "common/bytes.h"
#include "common/checked.h"

#define ENTRY_FIXED 24u
#define EXTRA_MAX 4096u
#define BITMAPS_MAX 65535u
#define DIRECTORY_MAX (64 * MIB)
#define TABLE_MAX (UINT64_C(1) << 27) /* entries */
#define CHUNK 512u                    /* entries read at once */

#define ENTRY_RESERVED UINT64_C(0xff000000000001fe)
#define ENTRY_ALL_ONES UINT64_C(1)

/* A table of `bytes` at `offset`: aligned, behind the header, inside the file. */
static bool placed(const struct check *c, uint64_t offset, uint64_t bytes)
{
    return is_aligned(offset, c->q->cluster_size) && offset >= c->q->cluster_size && bytes > 0 &&
           range_within(offset, bytes, c->end);
}

static bool entry_good(const struct check *c, uint64_t word)
{
    uint64_t offset = word & QCOW2_OFFSET_MASK;
    if (word & ENTRY_RESERVED)
        return false;
    return !offset || (!(word & ENTRY_ALL_ONES) && placed(c, offset, c->q->cluster_size));
}

static void bad(struct check *c)
{
    c->bitmaps_bad = true;
    if (c->tally)
        c->tally->bad_entries++;
}

static int walk_table(struct check *c, uint64_t offset, uint64_t entries)
{
    uint64_t words[CHUNK];
    if (entries > TABLE_MAX || !placed(c, offset, entries * 8)) {
        bad(c);
        return 0;
    }
    check_use(c, offset, entries * 8, CHECK_META);
    for (uint64_t i = 0; i < entries; i += CHUNK) {
        uint64_t count = MIN(entries - i, CHUNK);
        int r = check_tick(c, count * 8);
        if (r == 0)
            r = io_file_read(c->q->base.file, words, count * 8, offset + i * 8);
        if (r < 0)
            return r;
        for (uint64_t k = 0; k < count; k++) {
            uint64_t word = be64toh(words[k]);
            if (!entry_good(c, word))
                bad(c);
            else if (word & QCOW2_OFFSET_MASK)
                check_use(c, word & QCOW2_OFFSET_MASK, c->q->cluster_size, CHECK_META);
        }
    }
    return 0;
}

static int walk_directory(struct check *c, uint64_t offset, uint64_t length, uint32_t count)
{
    uint64_t at = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint8_t entry[ENTRY_FIXED];
        if (!range_within(at, ENTRY_FIXED, length)) {
            bad(c);
            return 0;
        }
        int r = io_file_read(c->q->base.file, entry, sizeof(entry), offset + at);
        if (r < 0)
            return r;
        uint64_t extra = load_be32(entry + 20);
        uint64_t size = align_up(ENTRY_FIXED + extra + load_be16(entry + 18), 8);
        if (extra > EXTRA_MAX || !range_within(at, size, length)) {
            bad(c);
            return 0;
        }
        r = walk_table(c, load_be64(entry), load_be32(entry + 8));
        if (r < 0)
            return r;
        at += size;
    }
    return 0;
}

int check_bitmaps(struct check *c)
{
    size_t length = 0;
    const uint8_t *data = header_extension(&c->q->header, QCOW2_EXTENSION_BITMAPS, &length);
    if (!data || length < 24 || !(c->q->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return 0;
    uint32_t count = load_be32(data);
    uint64_t bytes = load_be64(data + 8);
    uint64_t offset = load_be64(data + 16);
    if (count > BITMAPS_MAX || bytes > DIRECTORY_MAX || !placed(c, offset, bytes)) {
        bad(c);
        return 0;
    }
    check_use(c, offset, bytes, CHECK_META);
    return walk_directory(c, offset, bytes, count);
}
