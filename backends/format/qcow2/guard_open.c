// SPDX-License-Identifier: Apache-2.0
/*
 * What the overlap guard knows when a writable image is opened: every table that header, L1, refcount table and snapshot
 * table name. Two tables in one cluster are refused here, as writing one would change the other.
 */
#include <endian.h>
#include <errno.h>

#include "backends/format/qcow2/guard_set.h"
#include "backends/format/qcow2/refcount.h"
#include "backends/format/qcow2/snapshot.h"
#include "common/bytes.h"
#include "common/checked.h"

/* Clusters of L1 tables of snapshots: bounds time and memory for what a hostile snapshot table claims. */
#define SNAPSHOT_CLUSTERS_MAX (UINT64_C(1) << 21)
#define BITMAPS_MAX (64 * MIB)

struct filling {
    struct qcow2 *q;
    uint64_t snapshot_clusters;
    bool overlap;
    uint64_t where;
};

static void note(struct filling *f, enum guard_kind kind, uint64_t offset, uint64_t length)
{
    uint64_t first = offset >> f->q->cluster_bits;
    uint64_t count = div_round_up(length, f->q->cluster_size);
    if (guard_set_add(f->q->guard, kind, first, count) || f->overlap)
        return;
    f->overlap = true;
    f->where = offset;
}

static int note_snapshot(void *context, const struct snapshot *snapshot)
{
    struct filling *f = context;
    uint64_t bytes = (uint64_t)snapshot->l1_size * 8;
    uint64_t clusters = div_round_up(bytes, f->q->cluster_size);
    f->snapshot_clusters += clusters;
    if (f->snapshot_clusters > SNAPSHOT_CLUSTERS_MAX)
        return -EFBIG;
    int r = guard_reserve(f->q, f->q->l1_entries, clusters);
    if (r == 0)
        note(f, GUARD_SNAPSHOT_L1, snapshot->l1_offset, bytes);
    return r;
}

static void note_l1(struct filling *f)
{
    struct qcow2 *q = f->q;
    for (uint32_t i = 0; i < q->l1_entries; i++) {
        uint64_t entry = be64toh(atomic_load_explicit(&q->l1[i], memory_order_relaxed));
        if (entry)
            note(f, entry & QCOW2_COPIED ? GUARD_L2 : GUARD_L2_SHARED, entry & QCOW2_OFFSET_MASK, q->cluster_size);
    }
}

/* Only where the header says that the bitmaps are in order: else the place may be anything by now. */
static void note_bitmaps(struct filling *f)
{
    struct qcow2 *q = f->q;
    size_t length = 0;
    const uint8_t *extension = header_extension(&q->header, QCOW2_EXTENSION_BITMAPS, &length);
    if (!extension || length < 24 || !(q->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return;
    uint64_t bytes = load_be64(extension + 8);
    uint64_t offset = load_be64(extension + 16);
    if (bytes <= BITMAPS_MAX && range_within(offset, bytes, q->file_length_at_open) &&
        guard_reserve(q, q->l1_entries, div_round_up(bytes, q->cluster_size)) == 0)
        note(f, GUARD_BITMAPS, offset, bytes);
}

static int fill(struct filling *f, struct error *err)
{
    struct qcow2 *q = f->q;
    const struct header *h = &q->header;
    const struct refcounts *rc = q->refcounts;
    uint64_t table_bytes = (uint64_t)h->refcount_table_clusters << q->cluster_bits;
    uint64_t ignored = 0;
    uint64_t blocks = 0;
    for (uint64_t i = 0; i < rc->table_entries; i++)
        blocks += rc->table[i] != 0;
    uint64_t fixed = 1 + h->refcount_table_clusters + div_round_up((uint64_t)h->l1_size * 8, q->cluster_size) +
                     div_round_up(h->snapshots_length, q->cluster_size);
    int r = guard_reserve(q, q->l1_entries, fixed + blocks);
    if (r < 0)
        return error_sys(err, r, "overlap guard");
    note(f, GUARD_HEADER, 0, q->cluster_size);
    note(f, GUARD_L1, h->l1_offset, (uint64_t)h->l1_size * 8);
    note(f, GUARD_REFTABLE, h->refcount_table_offset, table_bytes);
    note(f, GUARD_SNAPSHOTS, h->snapshots_offset, h->snapshots_length);
    for (uint64_t i = 0; i < rc->table_entries; i++)
        if (rc->table[i])
            note(f, GUARD_REFBLOCK, rc->table[i], q->cluster_size);
    note_l1(f);
    note_bitmaps(f);
    return snapshots_walk(q, note_snapshot, f, &ignored, err);
}

int guard_create(struct qcow2 *q, struct error *err)
{
    struct filling f = {.q = q};
    int r = guard_set_create(&q->guard);
    if (r < 0)
        return error_sys(err, r, "overlap guard");
    q->guard->q = q;
    r = fill(&f, err);
    if (r < 0 || !f.overlap)
        return r;
    (void)error_set(err, EUCLEAN, "two tables of the image share the cluster at 0x%llx", (unsigned long long)f.where);
    (void)error_hint(err, "platter volume check VOLUME --repair");
    return error_code(err, "corrupt-image");
}
