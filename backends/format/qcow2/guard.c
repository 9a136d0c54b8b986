// SPDX-License-Identifier: Apache-2.0
/*
 * The overlap guard. Nothing is stored: the tables in memory are walked for each batch of extents, which is a few thousand
 * entries for a common image and some milliseconds for the largest, on a thread that blocks anyway.
 */
#include "backends/format/qcow2/guard.h"

#include <endian.h>

#include "backends/format/qcow2/refcount.h"
#include "common/checked.h"

static bool touches(uint64_t offset, uint64_t length, uint64_t table, uint64_t table_length)
{
    return table_length > 0 && ranges_overlap(offset, length, table, table_length);
}

bool guard_is_fixed(const struct qcow2 *q, uint64_t offset, uint64_t length)
{
    const struct header *h = &q->header;
    return offset < q->cluster_size || touches(offset, length, h->l1_offset, (uint64_t)h->l1_size * 8) ||
           touches(offset, length, h->refcount_table_offset, (uint64_t)h->refcount_table_clusters << h->cluster_bits) ||
           touches(offset, length, h->snapshots_offset, h->snapshots_length);
}

/* The extent that holds `cluster`, by halves; -1 = none. */
static ptrdiff_t find_extent(const struct extent *extents, size_t count, uint64_t cluster)
{
    size_t low = 0;
    size_t high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (cluster < extents[middle].cluster)
            high = middle;
        else if (cluster - extents[middle].cluster >= extents[middle].count)
            low = middle + 1;
        else
            return (ptrdiff_t)middle;
    }
    return -1;
}

size_t guard_check(const struct qcow2 *q, const struct extent *extents, size_t count, bool *hits)
{
    const struct refcounts *rc = q->refcounts;
    for (size_t i = 0; i < count; i++)
        hits[i] = guard_is_fixed(q, extents[i].cluster << q->cluster_bits, extents[i].count << q->cluster_bits);
    for (uint64_t i = 0; rc && i < rc->table_entries; i++) {
        ptrdiff_t at = rc->table[i] ? find_extent(extents, count, rc->table[i] >> q->cluster_bits) : -1;
        if (at >= 0)
            hits[at] = true;
    }
    for (uint32_t i = 0; i < q->l1_entries; i++) {
        uint64_t entry = be64toh(atomic_load_explicit(&q->l1[i], memory_order_relaxed)) & QCOW2_OFFSET_MASK;
        ptrdiff_t at = entry ? find_extent(extents, count, entry >> q->cluster_bits) : -1;
        if (at >= 0)
            hits[at] = true;
    }
    size_t found = 0;
    for (size_t i = 0; i < count; i++)
        found += hits[i];
    return found;
}

uint64_t guard_end(const struct qcow2 *q)
{
    const struct header *h = &q->header;
    const struct refcounts *rc = q->refcounts;
    uint64_t end = q->cluster_size;
    end = MAX(end, h->l1_offset + (uint64_t)h->l1_size * 8);
    end = MAX(end, h->refcount_table_offset + ((uint64_t)h->refcount_table_clusters << h->cluster_bits));
    end = MAX(end, h->snapshots_offset + h->snapshots_length);
    for (uint64_t i = 0; rc && i < rc->table_entries; i++)
        end = MAX(end, rc->table[i] ? rc->table[i] + q->cluster_size : 0);
    for (uint32_t i = 0; i < q->l1_entries; i++) {
        uint64_t entry = be64toh(atomic_load_explicit(&q->l1[i], memory_order_relaxed)) & QCOW2_OFFSET_MASK;
        end = MAX(end, entry ? entry + q->cluster_size : 0);
    }
    return end;
}
