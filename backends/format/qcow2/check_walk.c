// SPDX-License-Identifier: Apache-2.0
/*
 * The one walk over all tables of an image, which counts, judges and corrects. A table is read whole, judged entry by
 * entry, and written back when an entry has changed: entries change by themselves, so a torn write is some of them old,
 * some new, each of them good.
 */
#include <errno.h>
#include <stdlib.h>

#include "backends/format/qcow2/check.h"
#include "backends/format/qcow2/snapshot.h"
#include "common/checked.h"
#include "common/cleanup.h"

#define REPORT_BYTES MIB

int check_tick(struct check *c, uint64_t bytes)
{
    c->done += bytes;
    if (!c->options->progress || c->done - c->reported < REPORT_BYTES)
        return 0;
    c->reported = c->done;
    c->total = MAX(c->total, c->done);
    return c->options->progress(c->options->context, c->done, c->total) ? -ECANCELED : 0;
}

static void use_cluster(struct check *c, uint64_t cluster, uint32_t use)
{
    uint64_t window = cluster / c->window_size;
    if (window < c->windows)
        c->touched[window] = 1;
    if (cluster < c->window_first || cluster - c->window_first >= c->window_size)
        return;
    uint32_t *slot = &c->window[cluster - c->window_first];
    if ((*slot & CHECK_COUNT) != CHECK_COUNT)
        ++*slot;
    if ((use & CHECK_OWNED) && (*slot & CHECK_OWNED))
        use |= CHECK_OWNED_TWICE;
    *slot |= use;
}

void check_use(struct check *c, uint64_t offset, uint64_t length, uint32_t use)
{
    if (length == 0)
        return;
    uint64_t last = (offset + length - 1) >> c->q->cluster_bits;
    for (uint64_t i = offset >> c->q->cluster_bits; i <= last; i++)
        use_cluster(c, i, use);
}

/* ---- entries ------------------------------------------------------------------------------------------------- */

/* The entry with its "copied" bit as the count on disk wants it. */
static int judge_copied(struct check *c, uint64_t offset, bool compressed, uint64_t *word)
{
    uint64_t count = 0;
    int r = compressed ? 0 : check_counts_get(c, offset >> c->q->cluster_bits, &count);
    if (r < 0)
        return r;
    bool want = count == 1;
    if (want == !!(*word & QCOW2_COPIED))
        return 0;
    if (c->tally)
        c->tally->copied_flags++;
    if (c->fix & CHECK_FIX_COPIED)
        *word ^= QCOW2_COPIED;
    return 0;
}

/* Where the data of an entry shall go: its cluster's copy, if there is one for it. */
static uint64_t move_target(struct check *c, uint64_t offset)
{
    struct check_conflict *conflict = check_conflict_find(c, offset >> c->q->cluster_bits);
    if (!conflict || !conflict->copy)
        return offset;
    uint64_t stay = check_conflict_stay(c, conflict);
    if (stay == 0) /* a table's cluster: one copy for all */
        return conflict->copy << c->q->cluster_bits;
    uint64_t index = conflict->seen++;
    return index < stay ? offset : (conflict->copy + index - stay) << c->q->cluster_bits;
}

struct l2_walk {
    bool active;
    bool writable; /* nobody else uses the table's cluster */
    bool changed;
};

static void tally_entry(struct check *c, const struct l2_walk *walk, const struct check_entry *e)
{
    if (!c->tally)
        return;
    c->tally->bad_entries += e->bad;
    c->tally->allocated += walk->active && e->kind != CHECK_NOTHING;
    c->tally->compressed += walk->active && e->kind == CHECK_COMPRESSED;
}

static int visit_entry(struct check *c, struct l2_walk *walk, uint64_t *on_disk)
{
    bool extended = c->q->entry_size == 16;
    uint64_t words[2] = {be64toh(on_disk[0]), extended ? be64toh(on_disk[1]) : 0};
    struct check_entry e;
    if (!words[0] && !words[1])
        return 0;
    check_entry_judge(c, words[0], words[1], &e);
    tally_entry(c, walk, &e);
    bool copied = walk->active && e.kind == CHECK_STANDARD && (e.words[0] & QCOW2_COPIED);
    if (e.kind != CHECK_NOTHING)
        check_use(c, e.offset, e.length,
                  (e.kind == CHECK_COMPRESSED ? CHECK_PACKED : CHECK_DATA) | (copied ? CHECK_OWNED : 0));
    uint64_t now[2] = {c->fix & CHECK_FIX_ENTRIES ? e.words[0] : words[0],
                       c->fix & CHECK_FIX_ENTRIES ? e.words[1] : words[1]};
    if (c->moving && e.kind == CHECK_STANDARD && walk->writable) {
        uint64_t target = move_target(c, e.offset);
        if (target != e.offset) {
            check_use(c, target, c->q->cluster_size, CHECK_DATA);
            if (c->fix & CHECK_FIX_MOVES)
                now[0] = (now[0] & ~(QCOW2_OFFSET_MASK | QCOW2_COPIED)) | target;
        }
    }
    if (walk->active && e.kind != CHECK_NOTHING && (c->tally || (c->fix & CHECK_FIX_COPIED))) {
        int r = judge_copied(c, e.offset, e.kind == CHECK_COMPRESSED, &now[0]);
        if (r < 0)
            return r;
    }
    if (walk->writable && (now[0] != words[0] || now[1] != words[1])) {
        on_disk[0] = htobe64(now[0]);
        if (extended)
            on_disk[1] = htobe64(now[1]);
        walk->changed = true;
    }
    return 0;
}

static int walk_l2(struct check *c, uint64_t offset, bool active)
{
    struct qcow2 *q = c->q;
    struct l2_walk walk = {.active = active, .writable = !check_blocked(c, offset >> q->cluster_bits)};
    int r = check_tick(c, q->cluster_size);
    if (r == 0)
        r = io_file_read(q->base.file, c->l2, q->cluster_size, offset);
    for (uint64_t i = 0; r == 0 && i < q->cluster_size; i += q->entry_size)
        r = visit_entry(c, &walk, c->l2 + i / 8);
    if (r < 0 || !walk.changed)
        return r;
    c->wrote = true;
    return io_file_write(q->base.file, c->l2, q->cluster_size, offset);
}

/* ---- L1 ------------------------------------------------------------------------------------------------------ */

static int visit_l1_entry(struct check *c, uint64_t *on_disk, bool active, uint64_t *tables)
{
    uint64_t word = be64toh(*on_disk);
    if (!word)
        return 0;
    uint64_t clean = check_l1_judge(c, word);
    if (*tables == c->clusters)
        clean = 0; /* more tables than the file can hold: the same ones again and again */
    if (c->tally)
        c->tally->bad_entries += clean != word;
    uint64_t now = c->fix & CHECK_FIX_ENTRIES ? clean : word;
    int r = 0;
    if (clean) {
        uint64_t offset = clean & QCOW2_OFFSET_MASK;
        ++*tables;
        check_use(c, offset, c->q->cluster_size, CHECK_TABLE | (active && (clean & QCOW2_COPIED) ? CHECK_OWNED : 0));
        if (active && (c->tally || (c->fix & CHECK_FIX_COPIED)))
            r = judge_copied(c, offset, false, &now);
        if (r == 0)
            r = walk_l2(c, offset, active);
    }
    *on_disk = htobe64(now);
    return r;
}

static int walk_l1(struct check *c, uint64_t l1_offset, uint64_t entries, bool active)
{
    uint64_t bytes = entries * 8;
    uint64_t from = UINT64_MAX, to = 0, tables = 0;
    CLEANUP_FREE uint64_t *l1 = aligned_alloc(4096, MAX(align_up(bytes, 4096), 4096));
    if (!l1)
        return -ENOMEM;
    if (bytes == 0)
        return 0;
    check_use(c, l1_offset, bytes, CHECK_META);
    int r = check_tick(c, bytes);
    if (r == 0)
        r = io_file_read(c->q->base.file, l1, bytes, l1_offset);
    for (uint64_t i = 0; r == 0 && i < entries; i++) {
        uint64_t before = l1[i];
        r = visit_l1_entry(c, &l1[i], active, &tables);
        if (l1[i] != before) {
            from = MIN(from, i);
            to = i + 1;
        }
    }
    if (r < 0 || from >= to)
        return r;
    c->wrote = true;
    return io_file_write(c->q->base.file, l1 + from, (to - from) * 8, l1_offset + from * 8);
}

static int walk_snapshot(void *context, const struct snapshot *snapshot)
{
    return walk_l1(context, snapshot->l1_offset, snapshot->l1_size, false);
}

/* ---- all of it ----------------------------------------------------------------------------------------------- */

static void use_counts(struct check *c)
{
    const struct header *h = &c->q->header;
    if (c->table_entries)
        check_use(c, h->refcount_table_offset, (uint64_t)h->refcount_table_clusters << h->cluster_bits, CHECK_COUNTS);
    for (uint64_t i = 0; i < c->table_entries; i++)
        if (c->table[i])
            check_use(c, c->table[i], c->q->cluster_size, CHECK_COUNTS);
}

int check_walk(struct check *c, struct error *err)
{
    struct qcow2 *q = c->q;
    const struct header *h = &q->header;
    uint64_t ignored = 0;
    for (size_t i = 0; i < c->conflict_count; i++)
        c->conflicts[i].seen = 0;
    check_use(c, 0, q->cluster_size, CHECK_META);
    if (!c->without_counts)
        use_counts(c);
    int r = walk_l1(c, h->l1_offset, h->l1_size, true);
    if (r < 0)
        return error_sys(err, r, "follow the tables");
    if (!c->incomplete) {
        check_use(c, h->snapshots_offset, h->snapshots_length, CHECK_META);
        r = snapshots_walk(q, walk_snapshot, c, &ignored, err);
        if (r < 0)
            return r;
    }
    r = check_bitmaps(c);
    return r < 0 ? error_sys(err, r, "follow the bitmaps") : 0;
}
