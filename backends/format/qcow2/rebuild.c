// SPDX-License-Identifier: Apache-2.0
/*
 * Reference counts from the tables, for an image whose dirty bit says that its counts were left behind (lazy refcounts).
 *
 * Every table is walked and each use of a cluster counted in memory, one 32-bit number for a cluster of the file: what
 * the file's length allows, never what the tables claim, and no more than REBUILD_MAX. The counts then go into new blocks
 * and a new table behind the end of the file, where nothing is in use; the header changes to them in one sector, together
 * with the dirty bit. The old blocks and table are simply not counted. A crash before that leaves the image as it was.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/format/qcow2/control.h"
#include "backends/format/qcow2/refcount.h"
#include "backends/format/qcow2/snapshot.h"
#include "common/bytes.h"
#include "common/checked.h"
#include "common/cleanup.h"

#define REBUILD_MAX (UINT64_C(1) << 26) /* clusters: 256 MiB of memory */

struct rebuild {
    struct qcow2 *q;
    uint32_t *counts;
    uint64_t clusters; /* of the file */
    uint64_t *l2;      /* one table, as on disk */
};

static int use(struct rebuild *rb, uint64_t offset, uint64_t length)
{
    uint64_t first = offset >> rb->q->cluster_bits;
    uint64_t last = (offset + length - 1) >> rb->q->cluster_bits;
    if (length == 0)
        return 0;
    if (!range_within(offset, length, rb->clusters << rb->q->cluster_bits))
        return -EUCLEAN;
    for (uint64_t i = first; i <= last; i++) {
        if (rb->counts[i] == UINT32_MAX)
            return -EUCLEAN;
        rb->counts[i]++;
    }
    return 0;
}

/* ---- walking ------------------------------------------------------------------------------------------------- */

static int use_compressed(struct rebuild *rb, uint64_t entry)
{
    unsigned shift = 62 - (rb->q->cluster_bits - 8);
    uint64_t offset = entry & ((UINT64_C(1) << shift) - 1);
    uint64_t sectors = ((entry & ~(QCOW2_COPIED | QCOW2_COMPRESSED)) >> shift) + 1;
    uint64_t length = sectors * 512 - offset % 512;
    uint64_t end = rb->clusters << rb->q->cluster_bits;
    /* Up to a sector more than there is: the field counts whole ones. */
    return offset < end ? use(rb, offset, MIN(length, end - offset)) : -EUCLEAN;
}

static int use_l2(struct rebuild *rb, uint64_t offset)
{
    struct qcow2 *q = rb->q;
    int r = use(rb, offset, q->cluster_size);
    if (r == 0)
        r = io_file_read(q->base.file, rb->l2, q->cluster_size, offset);
    for (uint64_t i = 0; r == 0 && i < q->cluster_size / q->entry_size; i++) {
        uint64_t entry = be64toh(rb->l2[i * q->entry_size / 8]);
        uint64_t cluster = entry & QCOW2_OFFSET_MASK;
        if (entry & QCOW2_COMPRESSED)
            r = use_compressed(rb, entry);
        else if (!is_aligned(cluster, q->cluster_size))
            r = -EUCLEAN;
        else if (cluster)
            r = use(rb, cluster, q->cluster_size);
    }
    return r;
}

static int use_l1(struct rebuild *rb, const uint64_t *l1, uint64_t entries)
{
    int r = 0;
    for (uint64_t i = 0; r == 0 && i < entries; i++) {
        uint64_t offset = be64toh(l1[i]) & QCOW2_OFFSET_MASK;
        if (offset)
            r = is_aligned(offset, rb->q->cluster_size) ? use_l2(rb, offset) : -EUCLEAN;
    }
    return r;
}

static int use_snapshot(void *context, const struct snapshot *snapshot)
{
    struct rebuild *rb = context;
    uint64_t bytes = (uint64_t)snapshot->l1_size * 8;
    CLEANUP_FREE uint64_t *l1 = aligned_alloc(4096, MAX(align_up(bytes, 4096), 4096));
    if (!l1)
        return -ENOMEM;
    int r = use(rb, snapshot->l1_offset, bytes);
    if (r == 0)
        r = io_file_read(rb->q->base.file, l1, bytes, snapshot->l1_offset);
    return r < 0 ? r : use_l1(rb, l1, snapshot->l1_size);
}

static int use_everything(struct rebuild *rb, struct error *err)
{
    struct qcow2 *q = rb->q;
    const struct header *h = &q->header;
    uint64_t ignored = 0;
    int r = use(rb, 0, q->cluster_size);
    if (r == 0)
        r = use(rb, h->l1_offset, (uint64_t)h->l1_size * 8);
    if (r == 0)
        r = use(rb, h->snapshots_offset, h->snapshots_length);
    if (r == 0)
        r = use_l1(rb, (const uint64_t *)q->l1, q->l1_entries);
    if (r < 0)
        return error_sys(err, r, "follow the tables");
    return snapshots_walk(q, use_snapshot, rb, &ignored, err);
}

/* ---- the new blocks and table -------------------------------------------------------------------------------- */

/* [blocks][table] from cluster `start` on: blocks only for ranges in which something is counted. */
struct layout {
    uint64_t start, blocks, table;
    uint64_t indexes; /* table entries in use */
};

static uint64_t block_entries(const struct qcow2 *q)
{
    return (q->cluster_size * 8) >> q->header.refcount_order;
}

/* What cluster `i` is counted, the new area included. */
static uint64_t count_of(const struct rebuild *rb, const struct layout *layout, uint64_t i)
{
    if (i < rb->clusters)
        return rb->counts[i];
    return i - layout->start < layout->blocks + layout->table;
}

static bool block_used(const struct rebuild *rb, const struct layout *layout, uint64_t index)
{
    uint64_t entries = block_entries(rb->q);
    for (uint64_t i = index * entries; i < (index + 1) * entries; i++)
        if (count_of(rb, layout, i))
            return true;
    return false;
}

/* Area and blocks depend on each other; both only grow. */
static int plan(const struct rebuild *rb, struct layout *ret_layout)
{
    struct layout layout = {.start = rb->clusters, .table = 1};
    uint64_t entries = block_entries(rb->q);
    for (;;) {
        uint64_t blocks = 0;
        uint64_t indexes = div_round_up(layout.start + layout.blocks + layout.table, entries);
        for (uint64_t i = 0; i < indexes; i++)
            blocks += block_used(rb, &layout, i);
        uint64_t table = div_round_up(indexes * 8, rb->q->cluster_size);
        layout.indexes = indexes;
        if (blocks <= layout.blocks && table <= layout.table)
            break;
        layout.blocks = MAX(layout.blocks, blocks);
        layout.table = MAX(layout.table, table);
    }
    if (layout.table * rb->q->cluster_size > QCOW2_REFTABLE_MAX_BYTES)
        return -EFBIG;
    *ret_layout = layout;
    return 0;
}

static int write_block(const struct rebuild *rb, const struct layout *layout, uint64_t index, uint8_t *block,
                       uint64_t offset)
{
    const struct qcow2 *q = rb->q;
    uint64_t entries = block_entries(q);
    memset(block, 0, q->cluster_size);
    for (uint64_t i = 0; i < entries; i++) {
        uint64_t count = count_of(rb, layout, index * entries + i);
        if (count > q->refcounts->max)
            return -EUCLEAN;
        refcount_entry_set(block, q->header.refcount_order, i, count);
    }
    return io_file_write(q->base.file, block, q->cluster_size, offset);
}

static int write_structures(const struct rebuild *rb, const struct layout *layout)
{
    const struct qcow2 *q = rb->q;
    uint64_t table_bytes = layout->table * q->cluster_size;
    CLEANUP_FREE uint8_t *table = aligned_alloc(4096, align_up(table_bytes, 4096));
    CLEANUP_FREE uint8_t *block = aligned_alloc(4096, align_up(q->cluster_size, 4096));
    if (!table || !block)
        return -ENOMEM;
    memset(table, 0, table_bytes);
    uint64_t at = layout->start * q->cluster_size;
    int r = 0;
    for (uint64_t i = 0; r == 0 && i < layout->indexes; i++) {
        if (!block_used(rb, layout, i))
            continue;
        store_be64(table + i * 8, at);
        r = write_block(rb, layout, i, block, at);
        at += q->cluster_size;
    }
    if (r == 0)
        r = io_file_write(q->base.file, table, table_bytes, (layout->start + layout->blocks) * q->cluster_size);
    return r < 0 ? r : io_file_flush(q->base.file);
}

static int switch_header(struct qcow2 *q, const struct layout *layout)
{
    struct header next = q->header;
    next.refcount_table_offset = (layout->start + layout->blocks) * q->cluster_size;
    next.refcount_table_clusters = (uint32_t)layout->table;
    next.incompatible &= ~(uint64_t)QCOW2_INCOMPATIBLE_DIRTY;
    int r = header_write(q->base.file, &next);
    if (r == 0)
        r = io_file_flush(q->base.file);
    if (r == 0)
        r = io_file_length(q->base.file, &q->file_length_at_open);
    if (r == 0)
        q->header = next;
    return r;
}

/* ---- all of it ----------------------------------------------------------------------------------------------- */

static int needs_repair(struct error *err, const char *what)
{
    (void)error_set(err, EUCLEAN, "the image was not closed properly, and %s", what);
    return error_code(err, "needs-repair");
}

static int rebuild(struct rebuild *rb, struct error *err)
{
    struct layout layout;
    int r = use_everything(rb, err);
    if (r == -EUCLEAN)
        return needs_repair(err, "its tables point outside the file");
    if (r < 0)
        return error_prefix(err, "rebuild reference counts");
    r = plan(rb, &layout);
    if (r == 0)
        r = write_structures(rb, &layout);
    if (r == -EUCLEAN)
        return needs_repair(err, "a cluster has more users than its reference count can say");
    if (r == 0)
        r = switch_header(rb->q, &layout);
    return r < 0 ? error_sys(err, r, "rebuild reference counts") : 0;
}

int qcow2_rebuild(struct qcow2 *q, struct error *err)
{
    size_t length = 0;
    if (header_extension(&q->header, QCOW2_EXTENSION_BITMAPS, &length))
        return needs_repair(err, "it has bitmaps, whose clusters only other tools can count");
    struct rebuild rb = {.q = q, .clusters = div_round_up(q->file_length_at_open, q->cluster_size)};
    if (rb.clusters > REBUILD_MAX)
        return needs_repair(err, "its file is too large to count its clusters in memory");
    CLEANUP_FREE uint32_t *counts = calloc(rb.clusters, sizeof(*counts));
    CLEANUP_FREE uint64_t *l2 = aligned_alloc(4096, align_up(q->cluster_size, 4096));
    if (!counts || !l2)
        return error_sys(err, ENOMEM, "rebuild reference counts");
    rb.counts = counts;
    rb.l2 = l2;
    int r = rebuild(&rb, err);
    if (r < 0)
        return r;
    q->refcounts = refcounts_destroy(q->refcounts);
    return refcounts_open(q, &q->refcounts, err);
}
