// SPDX-License-Identifier: Apache-2.0
/*
 * The overlap guard's set: an open-addressed hash table of cluster numbers, each slot one word, so that a look-up is a few
 * atomic loads. A larger table replaces a full one; readers may still be in the old one, so all are kept until the end
 * (together less than the last). A reader that misses a cluster added at that very moment loses nothing: whoever adds a
 * cluster got it from the allocator, and no entry that we wrote points there.
 */
#include "backends/format/qcow2/guard.h"

#include <endian.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

#include "backends/format/qcow2/guard_set.h"
#include "backends/format/qcow2/refcount.h"
#include "backends/format/qcow2/reserve.h"
#include "common/checked.h"
#include "common/cleanup.h"
#include "common/log.h"

#define KIND_BITS 4u
#define KIND_MASK ((UINT64_C(1) << KIND_BITS) - 1)
#define SLOTS_MIN 1024u

struct guard_table {
    struct guard_table *older;
    uint64_t mask;
    _Atomic uint64_t slots[]; /* cluster << KIND_BITS | kind; 0 = empty */
};

/* ---- the set ------------------------------------------------------------------------------------------------- */

static uint64_t slot_of(const struct guard_table *table, uint64_t cluster)
{
    return ((cluster * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & table->mask;
}

static enum guard_kind find(const struct guard *guard, uint64_t cluster)
{
    const struct guard_table *table = atomic_load_explicit(&guard->table, memory_order_acquire);
    for (uint64_t i = slot_of(table, cluster);; i = (i + 1) & table->mask) {
        uint64_t slot = atomic_load_explicit(&table->slots[i], memory_order_relaxed);
        if (slot == 0)
            return GUARD_NONE;
        if (slot >> KIND_BITS == cluster && (slot & KIND_MASK) != GUARD_REMOVED)
            return (enum guard_kind)(slot & KIND_MASK);
    }
}

/* Locked; `cluster` is not there. True when it took an empty slot. */
static bool put(struct guard_table *table, uint64_t cluster, enum guard_kind kind)
{
    uint64_t i = slot_of(table, cluster);
    uint64_t slot = 0;
    while ((slot = atomic_load_explicit(&table->slots[i], memory_order_relaxed)) != 0 &&
           (slot & KIND_MASK) != GUARD_REMOVED)
        i = (i + 1) & table->mask;
    atomic_store_explicit(&table->slots[i], cluster << KIND_BITS | kind, memory_order_release);
    return slot == 0;
}

static struct guard_table *table_make(uint64_t need)
{
    uint64_t size = SLOTS_MIN;
    while (size / 2 < need)
        size *= 2;
    struct guard_table *table = calloc(1, sizeof(*table) + size * sizeof(table->slots[0]));
    if (table)
        table->mask = size - 1;
    return table;
}

int guard_set_create(struct guard **ret_guard)
{
    struct guard *guard = calloc(1, sizeof(*guard));
    struct guard_table *table = table_make(0);
    if (!guard || !table) {
        free(guard);
        free(table);
        return -ENOMEM;
    }
    atomic_store(&guard->table, table);
    (void)pthread_mutex_init(&guard->lock, NULL);
    *ret_guard = guard;
    return 0;
}

struct guard *guard_destroy(struct guard *guard)
{
    if (!guard)
        return NULL;
    struct guard_table *table = atomic_load(&guard->table);
    while (table) {
        struct guard_table *older = table->older;
        free(table);
        table = older;
    }
    (void)pthread_mutex_destroy(&guard->lock);
    free(guard);
    return NULL;
}

int guard_reserve(struct qcow2 *q, uint64_t l1_entries, uint64_t clusters)
{
    struct guard *guard = q->guard;
    if (!guard)
        return 0;
    LOCK_SCOPE(&guard->lock);
    struct guard_table *old = atomic_load_explicit(&guard->table, memory_order_relaxed);
    if (guard->used + l1_entries + clusters <= (old->mask + 1) / 2)
        return 0;
    struct guard_table *table = table_make(guard->live + l1_entries + clusters);
    if (!table)
        return -ENOMEM;
    for (uint64_t i = 0; i <= old->mask; i++) {
        uint64_t slot = atomic_load_explicit(&old->slots[i], memory_order_relaxed);
        if (slot && (slot & KIND_MASK) != GUARD_REMOVED)
            (void)put(table, slot >> KIND_BITS, (enum guard_kind)(slot & KIND_MASK));
    }
    guard->used = guard->live;
    table->older = old;
    atomic_store_explicit(&guard->table, table, memory_order_release);
    return 0;
}

/* Tables that snapshots share may be named more than once. */
static bool may_repeat(enum guard_kind kind)
{
    return kind == GUARD_L2_SHARED || kind == GUARD_SNAPSHOT_L1;
}

bool guard_set_add(struct guard *guard, enum guard_kind kind, uint64_t first, uint64_t count)
{
    bool alone = true;
    LOCK_SCOPE(&guard->lock);
    struct guard_table *table = atomic_load_explicit(&guard->table, memory_order_relaxed);
    for (uint64_t cluster = first; cluster < first + count; cluster++) {
        enum guard_kind there = find(guard, cluster);
        if (there == GUARD_NONE) {
            guard->live++;
            guard->used += put(table, cluster, kind);
        } else if (there != kind || !may_repeat(kind)) {
            alone = false;
        }
    }
    return alone;
}

void guard_add(struct qcow2 *q, enum guard_kind kind, uint64_t offset, uint64_t length)
{
    if (q->guard && !guard_set_add(q->guard, kind, offset >> q->cluster_bits, div_round_up(length, q->cluster_size)))
        guard_violation(q, "a new table was placed over metadata", offset);
}

void guard_remove(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    struct guard *guard = q->guard;
    if (!guard)
        return;
    LOCK_SCOPE(&guard->lock);
    struct guard_table *table = atomic_load_explicit(&guard->table, memory_order_relaxed);
    uint64_t first = offset >> q->cluster_bits;
    for (uint64_t cluster = first; cluster < first + div_round_up(length, q->cluster_size); cluster++) {
        if (find(guard, cluster) == GUARD_NONE)
            continue;
        uint64_t i = slot_of(table, cluster);
        uint64_t slot = 0;
        while ((slot = atomic_load_explicit(&table->slots[i], memory_order_relaxed)) >> KIND_BITS != cluster ||
               (slot & KIND_MASK) == GUARD_REMOVED)
            i = (i + 1) & table->mask;
        atomic_store_explicit(&table->slots[i], GUARD_REMOVED, memory_order_release);
        guard->live--;
    }
}

uint64_t guard_end(const struct qcow2 *q)
{
    uint64_t end = 1;
    LOCK_SCOPE(&q->guard->lock);
    const struct guard_table *table = atomic_load_explicit(&q->guard->table, memory_order_relaxed);
    for (uint64_t i = 0; i <= table->mask; i++) {
        uint64_t slot = atomic_load_explicit(&table->slots[i], memory_order_relaxed);
        if (slot && (slot & KIND_MASK) != GUARD_REMOVED)
            end = MAX(end, (slot >> KIND_BITS) + 1);
    }
    return end << q->cluster_bits;
}

/* ---- violations ---------------------------------------------------------------------------------------------- */

/* Keeper: the header says so too, for whoever opens the image next. */
static int mark_corrupt(struct keeper_job *job)
{
    struct guard *guard = (struct guard *)((char *)job - offsetof(struct guard, mark));
    struct qcow2 *q = guard->q;
    LOCK_SCOPE(&q->allocator->work);
    int r = 0;
    if (q->header.version >= 3) {
        q->header.incompatible |= QCOW2_INCOMPATIBLE_CORRUPT;
        r = header_write(q->base.file, &q->header);
        if (r == 0)
            r = io_file_flush(q->base.file);
    }
    log_error("qcow2 image is corrupt: %s (offset 0x%llx); it takes no more writes%s", guard->what,
              (unsigned long long)guard->where, r < 0 ? ", and could not be marked corrupt" : "");
    return r;
}

void guard_violation(struct qcow2 *q, const char *what, uint64_t offset)
{
    struct guard *guard = q->guard;
    if (atomic_exchange(&guard->violated, true))
        return;
    image_fail(q->base.image, -EUCLEAN);
    guard->what = what;
    guard->where = offset;
    guard->mark.run = mark_corrupt;
    keeper_submit(q->keeper, &guard->mark);
}

/* ---- asking -------------------------------------------------------------------------------------------------- */

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

bool guard_hits(const struct qcow2 *q, uint64_t offset, uint64_t length)
{
    if (!q->guard || length == 0)
        return false;
    uint64_t last = (offset + length - 1) >> q->cluster_bits;
    for (uint64_t cluster = offset >> q->cluster_bits; cluster <= last; cluster++)
        if (find(q->guard, cluster) != GUARD_NONE)
            return true;
    return false;
}

int guard_data(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    if (!guard_hits(q, offset, length))
        return 0;
    guard_violation(q, "an L2 entry points at metadata", offset);
    return -EUCLEAN;
}

int guard_table(struct qcow2 *q, enum guard_kind kind, uint64_t offset, uint64_t length)
{
    if (!q->guard || length == 0)
        return 0;
    uint64_t last = (offset + length - 1) >> q->cluster_bits;
    for (uint64_t cluster = offset >> q->cluster_bits; cluster <= last; cluster++) {
        if (find(q->guard, cluster) == kind)
            continue;
        guard_violation(q, "a table was to be written where none is known", offset);
        return -EUCLEAN;
    }
    return 0;
}

void guard_entries(struct qcow2 *q, const void *bytes, size_t length)
{
    const uint64_t *words = bytes;
    for (size_t i = 0; q->guard && i < length / 8; i += q->entry_size / 8) {
        uint64_t word = be64toh(words[i]);
        uint64_t host = word & QCOW2_OFFSET_MASK;
        if (word & QCOW2_COMPRESSED)
            host = word & ((UINT64_C(1) << (62 - (q->cluster_bits - 8))) - 1);
        if (host && guard_hits(q, host, 1)) {
            guard_violation(q, "an L2 entry points at metadata", host);
            return;
        }
    }
}

size_t guard_check(struct qcow2 *q, const struct extent *extents, size_t count, bool *hits)
{
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        hits[i] = guard_hits(q, extents[i].cluster << q->cluster_bits, extents[i].count << q->cluster_bits);
        if (hits[i])
            guard_violation(q, "the reference counts say that metadata is free", extents[i].cluster << q->cluster_bits);
        found += hits[i];
    }
    return found;
}
