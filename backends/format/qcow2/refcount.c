// SPDX-License-Identifier: Apache-2.0
/*
 * Reference counts: entries, the cache of blocks, and writing back. New blocks and larger tables: refcount_grow.c.
 */
#include "backends/format/qcow2/refcount.h"

#include <stdlib.h>
#include <string.h>

#include "backends/format/qcow2/guard.h"
#include "common/bytes.h"
#include "common/checked.h"
#include "common/cleanup.h"

#define CACHE_BYTES (4 * MIB)
#define CACHE_SLOTS_MIN 4
#define CACHE_SLOTS_MAX 256
#define WRITE_UNIT 4096u /* parts of blocks and tables are written in multiples of this (or a cluster, if smaller) */

/* ---- entries ------------------------------------------------------------------------------------------------- */

uint64_t refcount_entry_get(const uint8_t *block, unsigned order, uint64_t index)
{
    switch (order) {
    case 3:
        return block[index];
    case 4:
        return load_be16(block + index * 2);
    case 5:
        return load_be32(block + index * 4);
    case 6:
        return load_be64(block + index * 8);
    default: { /* several in a byte, the first in the lowest bits */
        unsigned in_byte = 3 - order;
        unsigned shift = (unsigned)(index & ((1u << in_byte) - 1)) << order;
        return (block[index >> in_byte] >> shift) & ((1u << (1u << order)) - 1);
    }
    }
}

void refcount_entry_set(uint8_t *block, unsigned order, uint64_t index, uint64_t value)
{
    switch (order) {
    case 3:
        block[index] = (uint8_t)value;
        break;
    case 4:
        store_be16(block + index * 2, (uint16_t)value);
        break;
    case 5:
        store_be32(block + index * 4, (uint32_t)value);
        break;
    case 6:
        store_be64(block + index * 8, value);
        break;
    default: {
        unsigned in_byte = 3 - order;
        unsigned shift = (unsigned)(index & ((1u << in_byte) - 1)) << order;
        unsigned mask = ((1u << (1u << order)) - 1) << shift;
        uint8_t *byte = block + (index >> in_byte);
        *byte = (uint8_t)((*byte & ~mask) | ((unsigned)value << shift));
        break;
    }
    }
}

/* ---- open ---------------------------------------------------------------------------------------------------- */

static int load_table(struct refcounts *rc, struct error *err)
{
    struct qcow2 *q = rc->q;
    uint64_t bytes = (uint64_t)q->header.refcount_table_clusters << q->cluster_bits;
    rc->table_entries = bytes / 8;
    rc->table = aligned_alloc(4096, align_up(bytes, 4096));
    if (!rc->table)
        return error_sys(err, ENOMEM, "refcount table");
    int r = io_file_read(q->base.file, rc->table, bytes, q->header.refcount_table_offset);
    if (r < 0)
        return error_sys(err, r, "read the refcount table");
    for (uint64_t i = 0; i < rc->table_entries; i++) {
        uint64_t offset = be64toh(rc->table[i]);
        rc->table[i] = offset;
        if (offset == 0)
            continue;
        if (!is_aligned(offset, q->cluster_size) || !range_within(offset, q->cluster_size, q->file_length_at_open) ||
            guard_is_fixed(q, offset, q->cluster_size)) {
            (void)error_set(err, EUCLEAN, "refcount table entry %llu points to 0x%llx, where no block can be",
                            (unsigned long long)i, (unsigned long long)offset);
            return error_code(err, "corrupt-image");
        }
    }
    return 0;
}

int refcounts_open(struct qcow2 *q, struct refcounts **ret_refcounts, struct error *err)
{
    struct refcounts *rc = calloc(1, sizeof(*rc));
    if (!rc)
        return error_sys(err, ENOMEM, "reference counts");
    rc->q = q;
    rc->lowest_freed = UINT64_MAX;
    rc->order = q->header.refcount_order;
    rc->max = rc->order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << rc->order)) - 1;
    rc->block_entries = (q->cluster_size * 8) >> rc->order;
    rc->file_length = q->file_length_at_open;
    rc->slots = (unsigned)MIN(MAX(CACHE_BYTES / q->cluster_size, CACHE_SLOTS_MIN), CACHE_SLOTS_MAX);
    rc->blocks = calloc(rc->slots, sizeof(*rc->blocks));
    int r = rc->blocks ? load_table(rc, err) : error_sys(err, ENOMEM, "refcount cache");
    if (r < 0) {
        (void)refcounts_destroy(rc);
        return r;
    }
    *ret_refcounts = rc;
    return 0;
}

struct refcounts *refcounts_destroy(struct refcounts *rc)
{
    if (!rc)
        return NULL;
    for (unsigned i = 0; rc->blocks && i < rc->slots; i++)
        free(rc->blocks[i].data);
    free(rc->blocks);
    free(rc->table);
    free(rc);
    return NULL;
}

/* ---- the cache of blocks ------------------------------------------------------------------------------------- */

static int write_block(struct refcounts *rc, struct refcount_block *block)
{
    if (block->dirty_from >= block->dirty_to)
        return 0;
    uint64_t unit = MIN(WRITE_UNIT, rc->q->cluster_size);
    uint64_t from = align_down(block->dirty_from, unit);
    uint64_t to = align_up(block->dirty_to, unit);
    int r = guard_table(rc->q, GUARD_REFBLOCK, rc->table[block->index], rc->q->cluster_size);
    if (r == 0)
        r = io_file_write(rc->q->base.file, block->data + from, to - from, rc->table[block->index] + from);
    if (r < 0)
        return r;
    block->dirty_from = (uint32_t)rc->q->cluster_size;
    block->dirty_to = 0;
    return 0;
}

/* An empty slot, or the least recently used one, written back. */
static int free_slot(struct refcounts *rc, struct refcount_block **ret_block)
{
    struct refcount_block *oldest = &rc->blocks[0];
    for (unsigned i = 0; i < rc->slots && oldest->data; i++)
        if (!rc->blocks[i].data || rc->blocks[i].used < oldest->used)
            oldest = &rc->blocks[i];
    if (!oldest->data) {
        oldest->data = aligned_alloc(4096, align_up(rc->q->cluster_size, 4096));
        if (!oldest->data)
            return -ENOMEM;
    } else {
        int r = write_block(rc, oldest);
        if (r < 0)
            return r;
    }
    oldest->index = UINT64_MAX;
    oldest->dirty_from = (uint32_t)rc->q->cluster_size;
    oldest->dirty_to = 0;
    *ret_block = oldest;
    return 0;
}

/* -ENOENT where the table has none. */
static int get_block(struct refcounts *rc, uint64_t index, struct refcount_block **ret_block)
{
    if (index >= rc->table_entries || rc->table[index] == 0)
        return -ENOENT;
    struct refcount_block *block = rc->recent && rc->recent->index == index ? rc->recent : NULL;
    for (unsigned i = 0; i < rc->slots && !block; i++)
        if (rc->blocks[i].data && rc->blocks[i].index == index)
            block = &rc->blocks[i];
    if (!block) {
        int r = free_slot(rc, &block);
        if (r < 0)
            return r;
        r = io_file_read(rc->q->base.file, block->data, rc->q->cluster_size, rc->table[index]);
        if (r < 0)
            return r;
        block->index = index;
    }
    rc->recent = block;
    block->used = ++rc->clock;
    *ret_block = block;
    return 0;
}

static void set_entry(struct refcounts *rc, struct refcount_block *block, uint64_t index, uint64_t value)
{
    refcount_entry_set(block->data, rc->order, index, value);
    uint64_t bit = index << rc->order;
    uint64_t end = (bit + (UINT64_C(1) << rc->order) + 7) / 8;
    block->dirty_from = (uint32_t)MIN(block->dirty_from, bit / 8);
    block->dirty_to = (uint32_t)MAX(block->dirty_to, end);
}

/* ---- counts -------------------------------------------------------------------------------------------------- */

int refcounts_get(struct refcounts *rc, uint64_t cluster, uint64_t *ret_count)
{
    struct refcount_block *block = NULL;
    int r = get_block(rc, cluster / rc->block_entries, &block);
    if (r < 0 && r != -ENOENT)
        return r;
    *ret_count = r < 0 ? 0 : refcount_entry_get(block->data, rc->order, cluster % rc->block_entries);
    return 0;
}

int refcounts_set(struct refcounts *rc, uint64_t cluster, uint64_t value)
{
    struct refcount_block *block = NULL;
    if (value > rc->max)
        return -ERANGE;
    int r = get_block(rc, cluster / rc->block_entries, &block);
    if (r < 0)
        return r;
    set_entry(rc, block, cluster % rc->block_entries, value);
    return 0;
}

int refcounts_adjust(struct refcounts *rc, uint64_t cluster, uint64_t count, int delta, uint64_t *ret_changed)
{
    uint64_t changed = 0;
    int r = 0;
    while (r == 0 && changed < count) {
        struct refcount_block *block = NULL;
        uint64_t index = (cluster + changed) % rc->block_entries;
        r = get_block(rc, (cluster + changed) / rc->block_entries, &block);
        while (r == 0 && changed < count && index < rc->block_entries) {
            uint64_t value = refcount_entry_get(block->data, rc->order, index);
            if (value == (delta < 0 ? 0 : rc->max)) {
                r = -ERANGE;
                break;
            }
            set_entry(rc, block, index, delta < 0 ? value - 1 : value + 1);
            index++;
            changed++;
        }
    }
    if (ret_changed)
        *ret_changed = changed;
    return r;
}

/* ---- searching ----------------------------------------------------------------------------------------------- */

int refcounts_find_free(struct refcounts *rc, uint64_t from, uint64_t want, uint64_t *ret_cluster, uint64_t *ret_count,
                        bool *ret_missing)
{
    const uint64_t entries_max = QCOW2_REFTABLE_MAX_BYTES / 8;
    for (uint64_t index = from / rc->block_entries; index < entries_max; index++) {
        struct refcount_block *block = NULL;
        uint64_t first = index * rc->block_entries;
        uint64_t at = MAX(from, first) - first;
        int r = get_block(rc, index, &block);
        if (r == -ENOENT) {
            uint64_t next = index + 1;
            while (next < rc->table_entries && rc->table[next] == 0)
                next++;
            *ret_cluster = first + at;
            *ret_count = next < rc->table_entries ? next * rc->block_entries - *ret_cluster : UINT64_MAX;
            *ret_missing = true;
            return 0;
        }
        if (r < 0)
            return r;
        while (at < rc->block_entries && refcount_entry_get(block->data, rc->order, at) != 0)
            at++;
        uint64_t end = at;
        while (end < rc->block_entries && end - at < want && refcount_entry_get(block->data, rc->order, end) == 0)
            end++;
        if (end > at) {
            *ret_cluster = first + at;
            *ret_count = end - at;
            *ret_missing = false;
            return 0;
        }
    }
    return -ENOSPC;
}

int refcounts_end(struct refcounts *rc, uint64_t limit, uint64_t *ret_end)
{
    uint64_t index = MIN(div_round_up(limit, rc->block_entries), rc->table_entries);
    while (index-- > 0) {
        struct refcount_block *block = NULL;
        int r = get_block(rc, index, &block);
        if (r == -ENOENT)
            continue;
        if (r < 0)
            return r;
        for (uint64_t at = MIN(rc->block_entries, limit - index * rc->block_entries); at > 0; at--) {
            if (refcount_entry_get(block->data, rc->order, at - 1) != 0) {
                *ret_end = index * rc->block_entries + at;
                return 0;
            }
        }
    }
    *ret_end = 0;
    return 0;
}

/* ---- writing back -------------------------------------------------------------------------------------------- */

/* The blocks behind the entries have been durable since refcounts_extend. */
static int write_table(struct refcounts *rc)
{
    if (rc->table_dirty_from >= rc->table_dirty_to)
        return 0;
    uint64_t unit = MIN(WRITE_UNIT, rc->q->cluster_size);
    uint64_t from = align_down(rc->table_dirty_from * 8, unit);
    uint64_t length = align_up(rc->table_dirty_to * 8, unit) - from;
    CLEANUP_FREE uint8_t *buffer = aligned_alloc(4096, align_up(length, 4096));
    if (!buffer)
        return -ENOMEM;
    for (uint64_t i = 0; i < length / 8; i++)
        store_be64(buffer + i * 8, rc->table[from / 8 + i]);
    int r = guard_table(rc->q, GUARD_REFTABLE, rc->q->header.refcount_table_offset + from, length);
    if (r == 0)
        r = io_file_write(rc->q->base.file, buffer, length, rc->q->header.refcount_table_offset + from);
    if (r < 0)
        return r;
    rc->table_dirty_from = rc->table_entries;
    rc->table_dirty_to = 0;
    return 0;
}

int refcounts_write(struct refcounts *rc)
{
    for (unsigned i = 0; i < rc->slots; i++) {
        int r = rc->blocks[i].data && rc->blocks[i].index != UINT64_MAX ? write_block(rc, &rc->blocks[i]) : 0;
        if (r < 0)
            return r;
    }
    int r = write_table(rc);
    if (r < 0 || !rc->header_dirty)
        return r;
    r = header_write(rc->q->base.file, &rc->q->header);
    if (r == 0)
        rc->header_dirty = false;
    return r;
}

int refcounts_sync(struct refcounts *rc)
{
    int r = refcounts_write(rc);
    if (r < 0)
        return r;
    r = io_file_flush(rc->q->base.file);
    if (r < 0) {
        image_fail(rc->q->base.image, r);
        return r;
    }
    if (rc->old_table_clusters) {
        guard_remove(rc->q, rc->old_table * rc->q->cluster_size, rc->old_table_clusters * rc->q->cluster_size);
        /* A count that was wrong before stays wrong: the table is not needed any more either way. */
        (void)refcounts_adjust(rc, rc->old_table, rc->old_table_clusters, -1, NULL);
        rc->old_table_clusters = 0;
        rc->lowest_freed = MIN(rc->lowest_freed, rc->old_table);
    }
    return 0;
}
