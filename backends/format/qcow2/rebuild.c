// SPDX-License-Identifier: Apache-2.0
/*
 * Reference counts from the tables, for an image whose dirty bit says that its counts were left behind (lazy refcounts).
 *
 * Every table is walked and each use of a cluster counted in memory, one 32-bit number for a cluster of the file: what
 * the file's length allows, never what the tables claim. Counts that differ are then set; blocks that are missing are
 * added behind the end of the file, where nothing is in use.
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
        r = use(rb, h->refcount_table_offset, (uint64_t)h->refcount_table_clusters << h->cluster_bits);
    if (r == 0)
        r = use(rb, h->snapshots_offset, h->snapshots_length);
    for (uint64_t i = 0; r == 0 && i < q->refcounts->table_entries; i++)
        if (q->refcounts->table[i])
            r = use(rb, q->refcounts->table[i], q->cluster_size);
    if (r == 0)
        r = use_l1(rb, (const uint64_t *)q->l1, q->l1_entries);
    if (r < 0)
        return error_sys(err, r, "follow the tables");
    return snapshots_walk(q, use_snapshot, rb, &ignored, err);
}

/* ---- setting ------------------------------------------------------------------------------------------------- */

/* Blocks for every cluster of the file that is in use. */
static int add_blocks(struct rebuild *rb)
{
    struct refcounts *rc = rb->q->refcounts;
    for (uint64_t i = 0; i < rb->clusters; i++) {
        uint64_t index = i / rc->block_entries;
        if (!rb->counts[i] || (index < rc->table_entries && rc->table[index]))
            continue;
        return -ENOENT;
    }
    return 0;
}

static int set_counts(struct rebuild *rb)
{
    struct refcounts *rc = rb->q->refcounts;
    for (uint64_t i = 0; i < rb->clusters; i++) {
        uint64_t count = 0;
        int r = refcounts_get(rc, i, &count);
        if (r == 0 && count != rb->counts[i])
            r = refcounts_set(rc, i, rb->counts[i]);
        if (r < 0)
            return r;
    }
    return refcounts_sync(rc);
}

static int clear_dirty(struct qcow2 *q)
{
    q->header.incompatible &= ~(uint64_t)QCOW2_INCOMPATIBLE_DIRTY;
    int r = header_write(q->base.file, &q->header);
    return r < 0 ? r : io_file_flush(q->base.file);
}

static int needs_repair(struct error *err, const char *what)
{
    (void)error_set(err, EUCLEAN, "the image was not closed properly, and %s", what);
    return error_code(err, "needs-repair");
}

int qcow2_rebuild(struct qcow2 *q, struct error *err)
{
    size_t length = 0;
    if (header_extension(&q->header, QCOW2_EXTENSION_BITMAPS, &length))
        return needs_repair(err, "it has bitmaps, whose clusters only other tools can count");
    struct rebuild rb = {.q = q, .clusters = div_round_up(q->file_length_at_open, q->cluster_size)};
    CLEANUP_FREE uint32_t *counts = calloc(rb.clusters, sizeof(*counts));
    CLEANUP_FREE uint64_t *l2 = aligned_alloc(4096, align_up(q->cluster_size, 4096));
    if (!counts || !l2)
        return error_sys(err, ENOMEM, "rebuild reference counts");
    rb.counts = counts;
    rb.l2 = l2;
    int r = use_everything(&rb, err);
    if (r == -EUCLEAN)
        return needs_repair(err, "its tables point outside the file");
    if (r < 0)
        return error_prefix(err, "rebuild reference counts");
    r = add_blocks(&rb);
    if (r == 0)
        r = set_counts(&rb);
    if (r == 0)
        r = clear_dirty(q);
    if (r == -ENOENT)
        return needs_repair(err, "refcount blocks are missing");
    return r < 0 ? error_sys(err, r, "rebuild reference counts") : 0;
}
