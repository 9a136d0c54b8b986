// SPDX-License-Identifier: Apache-2.0
/*
 * Reference counts for space that no block covers yet: new blocks, and a new table when the old one is too short. All of
 * it is laid out in one piece: [blocks][table, if any][the clusters asked for], and the blocks count themselves.
 */
#include <stdlib.h>
#include <string.h>

#include "backends/format/qcow2/guard.h"
#include "backends/format/qcow2/refcount.h"
#include "common/bytes.h"
#include "common/checked.h"
#include "common/cleanup.h"

#define AHEAD_MIN (1 * MIB)
#define AHEAD_MAX (64 * MIB)

struct plan {
    uint64_t start; /* cluster */
    uint64_t first; /* index of the first new block */
    uint64_t blocks;
    uint64_t table;         /* clusters of the new table, 0 = the old one will do */
    uint64_t table_entries; /* of the new table */
    uint64_t payload;       /* clusters */
};

static uint64_t plan_size(const struct plan *plan)
{
    return plan->blocks + plan->table + plan->payload;
}

/* Blocks and table that `payload` clusters need, themselves included: both only ever grow, so this ends. */
static int plan_try(const struct refcounts *rc, uint64_t start, uint64_t payload, struct plan *ret_plan)
{
    const uint64_t entries_max = QCOW2_REFTABLE_MAX_BYTES / 8;
    const uint64_t cluster_size = rc->q->cluster_size;
    struct plan plan = {.start = start, .first = start / rc->block_entries, .payload = payload};
    for (;;) {
        uint64_t last = (start + plan_size(&plan) - 1) / rc->block_entries;
        uint64_t blocks = last - plan.first + 1;
        uint64_t table = 0;
        if (last >= entries_max || start + plan_size(&plan) > QCOW2_OFFSET_MASK / cluster_size)
            return -ENOSPC;
        if (last >= rc->table_entries) {
            uint64_t entries = MIN(MAX(last + 1, rc->table_entries + rc->table_entries / 2), entries_max);
            table = MAX(div_round_up(entries * 8, cluster_size), plan.table);
            plan.table_entries = table * cluster_size / 8;
        }
        if (blocks == plan.blocks && table == plan.table)
            break;
        plan.blocks = blocks;
        plan.table = table;
    }
    *ret_plan = plan;
    return 0;
}

/* As much of `want` as fits `span`, at least one. */
static int plan_fit(const struct refcounts *rc, uint64_t start, uint64_t span, uint64_t want, struct plan *ret_plan)
{
    uint64_t payload = MIN(want, span);
    while (payload > 0) {
        struct plan plan;
        int r = plan_try(rc, start, payload, &plan);
        if (r < 0)
            return r;
        if (plan_size(&plan) <= span) {
            *ret_plan = plan;
            return 0;
        }
        uint64_t over = plan_size(&plan) - span;
        payload = payload > over ? payload - over : 0;
    }
    return -ENOSPC;
}

int refcounts_extend_size(const struct refcounts *rc, uint64_t start, uint64_t span, uint64_t want, uint64_t *ret_size)
{
    struct plan plan;
    int r = plan_fit(rc, start, span, want, &plan);
    if (r < 0)
        return r;
    *ret_size = plan_size(&plan);
    return 0;
}

static int write_new_blocks(struct refcounts *rc, const struct plan *plan)
{
    uint64_t bytes = plan->blocks * rc->q->cluster_size;
    CLEANUP_FREE uint8_t *buffer = aligned_alloc(4096, align_up(bytes, 4096));
    if (!buffer)
        return -ENOMEM;
    memset(buffer, 0, bytes);
    for (uint64_t i = 0; i < plan_size(plan); i++) {
        uint64_t entry = plan->start + i - plan->first * rc->block_entries;
        uint8_t *block = buffer + entry / rc->block_entries * rc->q->cluster_size;
        refcount_entry_set(block, rc->order, entry % rc->block_entries, 1);
    }
    return io_file_write(rc->q->base.file, buffer, bytes, plan->start * rc->q->cluster_size);
}

/* The new table with the new blocks in it, or NULL when the old one stays. */
static int write_new_table(struct refcounts *rc, const struct plan *plan, uint64_t **ret_table)
{
    if (!plan->table)
        return 0;
    uint64_t bytes = plan->table * rc->q->cluster_size;
    CLEANUP_FREE uint64_t *table = aligned_alloc(4096, align_up(bytes, 4096));
    CLEANUP_FREE uint8_t *buffer = aligned_alloc(4096, align_up(bytes, 4096));
    if (!table || !buffer)
        return -ENOMEM;
    memset(table, 0, bytes);
    memcpy(table, rc->table, rc->table_entries * 8);
    for (uint64_t i = 0; i < plan->blocks; i++)
        table[plan->first + i] = (plan->start + i) * rc->q->cluster_size;
    for (uint64_t i = 0; i < bytes / 8; i++)
        store_be64(buffer + i * 8, table[i]);
    int r = io_file_write(rc->q->base.file, buffer, bytes, (plan->start + plan->blocks) * rc->q->cluster_size);
    if (r < 0)
        return r;
    *ret_table = steal_ptr(&table);
    return 0;
}

/* What was written is durable: from here on memory says so too, and a failing write is only late. */
static void adopt(struct refcounts *rc, const struct plan *plan, uint64_t *table)
{
    struct header *header = &rc->q->header;
    uint64_t cluster_size = rc->q->cluster_size;
    guard_add(rc->q, GUARD_REFBLOCK, plan->start * cluster_size, plan->blocks * cluster_size);
    guard_add(rc->q, GUARD_REFTABLE, (plan->start + plan->blocks) * cluster_size, plan->table * cluster_size);
    if (table) {
        rc->old_table = header->refcount_table_offset / rc->q->cluster_size;
        rc->old_table_clusters = header->refcount_table_clusters;
        header->refcount_table_offset = (plan->start + plan->blocks) * rc->q->cluster_size;
        header->refcount_table_clusters = (uint32_t)plan->table;
        rc->header_dirty = true;
        free(rc->table);
        rc->table = table;
        rc->table_entries = plan->table_entries;
        rc->table_dirty_from = rc->table_entries;
        rc->table_dirty_to = 0;
        return;
    }
    for (uint64_t i = 0; i < plan->blocks; i++)
        rc->table[plan->first + i] = (plan->start + i) * rc->q->cluster_size;
    bool clean = rc->table_dirty_from >= rc->table_dirty_to;
    rc->table_dirty_from = clean ? plan->first : MIN(rc->table_dirty_from, plan->first);
    rc->table_dirty_to = clean ? plan->first + plan->blocks : MAX(rc->table_dirty_to, plan->first + plan->blocks);
}

int refcounts_extend(struct refcounts *rc, uint64_t start, uint64_t span, uint64_t want, uint64_t *ret_cluster,
                     uint64_t *ret_count)
{
    /* One move of the table at a time: the last one must be in the header. */
    int r = rc->header_dirty || rc->old_table_clusters ? refcounts_sync(rc) : 0;
    if (r < 0)
        return r;
    struct plan plan;
    r = plan_fit(rc, start, span, want, &plan);
    if (r < 0)
        return r;
    r = guard_reserve(rc->q, rc->q->l1_entries, plan.blocks + plan.table);
    if (r < 0)
        return r;
    r = refcounts_ensure_length(rc, (plan.start + plan_size(&plan)) * rc->q->cluster_size);
    if (r < 0)
        return r;
    r = write_new_blocks(rc, &plan);
    if (r < 0)
        return r;
    CLEANUP_FREE uint64_t *table = NULL;
    r = write_new_table(rc, &plan, &table);
    if (r < 0)
        return r;
    r = io_file_flush(rc->q->base.file);
    if (r < 0) {
        image_fail(rc->q->base.image, r);
        return r;
    }
    adopt(rc, &plan, steal_ptr(&table));
    *ret_cluster = plan.start + plan.blocks + plan.table;
    *ret_count = plan.payload;
    return 0;
}

int refcounts_ensure_length(struct refcounts *rc, uint64_t bytes)
{
    if (bytes <= rc->file_length)
        return 0;
    uint64_t ahead = MIN(MAX(rc->q->header.size / 64, AHEAD_MIN), AHEAD_MAX);
    uint64_t target = align_up(bytes + ahead, MAX(rc->q->cluster_size, 4096));
    int r = io_file_allocate(rc->q->base.file, rc->file_length, target - rc->file_length);
    if (r == -ENOSPC || r == -EFBIG || r == -EDQUOT) {
        target = align_up(bytes, rc->q->cluster_size);
        r = io_file_allocate(rc->q->base.file, rc->file_length, target - rc->file_length);
    }
    if (r < 0)
        return r == -EFBIG || r == -EDQUOT ? -ENOSPC : r;
    rc->file_length = target;
    return 0;
}
