// SPDX-License-Identifier: Apache-2.0
/*
 * The counts on disk beside those of the window: reading them, telling where they differ, making them the same.
 *
 * A block is changed and written in place. Leaks are returned and durable before anything is raised; neither direction
 * can hurt whichever of its sectors a power cut lets through.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/format/qcow2/check.h"
#include "backends/format/qcow2/refcount.h"
#include "common/checked.h"
#include "common/cleanup.h"

#define SLOTS 32u

struct refcount_slot {
    uint64_t index; /* UINT64_MAX = empty */
    uint8_t *data;
};

uint64_t check_count_max(const struct check *c)
{
    unsigned order = c->q->header.refcount_order;
    return order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << order)) - 1;
}

static uint64_t block_entries(const struct check *c)
{
    return (c->q->cluster_size * 8) >> c->q->header.refcount_order;
}

/* ---- the table and its blocks -------------------------------------------------------------------------------- */

static void judge_table(struct check *c)
{
    uint64_t blocks = 0;
    for (uint64_t i = 0; i < c->table_entries; i++) {
        uint64_t offset = be64toh(c->table[i]);
        bool good = is_aligned(offset, c->q->cluster_size) && range_within(offset, c->q->cluster_size, c->end) &&
                    (offset & ~QCOW2_OFFSET_MASK) == 0;
        /* More blocks than clusters: the same ones again and again. */
        if (offset && (!good || ++blocks > c->clusters)) {
            offset = 0;
            c->table_bad++;
        }
        c->table[i] = offset;
    }
}

int check_counts_load(struct check *c)
{
    const struct header *h = &c->q->header;
    uint64_t bytes = (uint64_t)h->refcount_table_clusters << h->cluster_bits;
    check_counts_release(c);
    c->table_bad = 0;
    c->slots = calloc(SLOTS, sizeof(*c->slots));
    if (!c->slots)
        return -ENOMEM;
    for (unsigned i = 0; i < SLOTS; i++)
        c->slots[i].index = UINT64_MAX;
    if (header_validate(h, c->q->file_length_at_open, NULL) < 0) { /* the other tables are known to be good */
        c->table_bad = 1;
        return 0;
    }
    c->table = aligned_alloc(4096, align_up(bytes, 4096));
    if (!c->table)
        return -ENOMEM;
    int r = io_file_read(c->q->base.file, c->table, bytes, h->refcount_table_offset);
    if (r < 0)
        return r;
    c->table_entries = bytes / 8;
    judge_table(c);
    return 0;
}

void check_counts_release(struct check *c)
{
    for (unsigned i = 0; c->slots && i < SLOTS; i++)
        free(c->slots[i].data);
    free(steal_ptr(&c->slots));
    free(steal_ptr(&c->table));
    c->table_entries = 0;
}

/* *ret_block NULL where the table has none. */
static int get_block(struct check *c, uint64_t index, uint8_t **ret_block)
{
    struct refcount_slot *slot = &c->slots[index % SLOTS];
    *ret_block = NULL;
    if (index >= c->table_entries || !c->table[index])
        return 0;
    if (slot->index != index) {
        if (!slot->data)
            slot->data = aligned_alloc(4096, align_up(c->q->cluster_size, 4096));
        if (!slot->data)
            return -ENOMEM;
        slot->index = UINT64_MAX;
        int r = io_file_read(c->q->base.file, slot->data, c->q->cluster_size, c->table[index]);
        if (r < 0)
            return r;
        slot->index = index;
    }
    *ret_block = slot->data;
    return 0;
}

int check_counts_get(struct check *c, uint64_t cluster, uint64_t *ret_count)
{
    uint8_t *block;
    uint64_t entries = block_entries(c);
    int r = get_block(c, cluster / entries, &block);
    if (r == 0)
        *ret_count = block ? refcount_entry_get(block, c->q->header.refcount_order, cluster % entries) : 0;
    return r;
}

/* ---- conflicts ----------------------------------------------------------------------------------------------- */

static bool in_conflict(const struct check *c, uint32_t uses)
{
    uint64_t count = uses & CHECK_COUNT;
    return ((uses & (CHECK_META | CHECK_COUNTS)) && count > 1) ||
           ((uses & CHECK_TABLE) && (uses & (CHECK_DATA | CHECK_PACKED))) || (uses & CHECK_OWNED_TWICE) ||
           count > check_count_max(c) || count == CHECK_COUNT;
}

static int keep_conflict(struct check *c, uint64_t cluster, uint32_t uses)
{
    c->found.double_use++;
    if (uses & CHECK_COUNTS)
        c->broken = true;
    if (c->conflict_count == CHECK_CONFLICTS_MAX) {
        c->crowded = true;
        return 0;
    }
    if (c->conflict_count == c->conflict_room) {
        size_t room = c->conflict_room ? 2 * c->conflict_room : 64;
        struct check_conflict *list = realloc(c->conflicts, room * sizeof(*list));
        if (!list)
            return -ENOMEM;
        c->conflicts = list;
        c->conflict_room = room;
    }
    c->conflicts[c->conflict_count++] = (struct check_conflict){.cluster = cluster, .uses = uses};
    return 0;
}

struct check_conflict *check_conflict_find(const struct check *c, uint64_t cluster)
{
    size_t low = 0;
    size_t high = c->conflict_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (c->conflicts[middle].cluster == cluster)
            return &c->conflicts[middle];
        if (c->conflicts[middle].cluster < cluster)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

uint64_t check_conflict_stay(const struct check *c, const struct check_conflict *conflict)
{
    if (conflict->uses & (CHECK_META | CHECK_TABLE))
        return 0;
    return conflict->uses & CHECK_OWNED_TWICE ? 1 : check_count_max(c);
}

bool check_blocked(const struct check *c, uint64_t cluster)
{
    const struct check_conflict *conflict = check_conflict_find(c, cluster);
    /* While data moves to copies nobody's data is left in the table, so entries of its own may go as well. */
    if (conflict && c->moving && conflict->copy && !(conflict->uses & (CHECK_META | CHECK_COUNTS | CHECK_PACKED)))
        return false;
    return conflict && (conflict->uses & ~(uint32_t)(CHECK_COUNT | CHECK_TABLE | CHECK_OWNED | CHECK_OWNED_TWICE));
}

/* ---- windows ------------------------------------------------------------------------------------------------- */

static uint64_t limit(const struct check *c)
{
    uint64_t last = c->table_entries;
    while (last > 0 && !c->table[last - 1])
        last--;
    return MAX(c->clusters, last * block_entries(c));
}

/* The first window from `i` on in which something is used or has a block; `count` when there is none. */
static uint64_t next_window(const struct check *c, uint64_t i, uint64_t count)
{
    uint64_t entries = block_entries(c);
    uint64_t index = i * c->window_size / entries;
    while (i < c->windows && !c->touched[i])
        i++;
    while (index < c->table_entries && !c->table[index])
        index++;
    if (i >= c->windows)
        i = count;
    /* A block that began before the window counts for it as well: `index` was rounded down. */
    return index < c->table_entries ? MIN(i, index * entries / c->window_size) : i;
}

int check_windows(struct check *c, int (*each)(struct check *c, void *context), void *context, struct error *err)
{
    struct image_check *tally = c->tally;
    uint64_t count = div_round_up(limit(c), c->window_size);
    int r = 0;
    memset(c->touched, 0, c->windows);
    for (uint64_t i = 0; r == 0 && i < count; i = MAX(i + 1, next_window(c, i + 1, count))) {
        c->window_first = i * c->window_size;
        memset(c->window, 0, c->window_size * sizeof(*c->window));
        if (c->window_first < c->clusters)
            r = check_walk(c, err);
        c->tally = NULL; /* each entry is judged once */
        if (r == 0) {
            r = each(c, context);
            if (r < 0)
                (void)error_sys(err, r, "compare the reference counts");
        }
    }
    c->tally = tally;
    return r;
}

/* ---- comparing ----------------------------------------------------------------------------------------------- */

static int compare_one(struct check *c, uint64_t cluster, uint32_t uses, bool block, uint64_t have)
{
    uint64_t want = uses & CHECK_COUNT;
    if ((uses & CHECK_TABLE) && want > 1)
        c->reached_twice = true;
    int r = want && in_conflict(c, uses) ? keep_conflict(c, cluster, uses) : 0;
    if (want == CHECK_COUNT)
        return r; /* more than were counted */
    if (want && !block)
        c->missing = true;
    c->found.leaks += have > want;
    c->found.low_counts += have < want;
    return r;
}

int check_compare(struct check *c, void *context)
{
    uint64_t entries = block_entries(c);
    (void)context;
    for (uint64_t i = 0; i < c->window_size; i++) {
        uint8_t *block;
        uint64_t cluster = c->window_first + i;
        int r = get_block(c, cluster / entries, &block);
        if (r < 0)
            return r;
        uint64_t have = block ? refcount_entry_get(block, c->q->header.refcount_order, cluster % entries) : 0;
        if (have || c->window[i])
            r = compare_one(c, cluster, c->window[i], block, have);
        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- making them the same ------------------------------------------------------------------------------------ */

/* The part of block `index` that the window covers, in one direction. */
static int fix_block(struct check *c, uint64_t index, bool raise)
{
    unsigned order = c->q->header.refcount_order;
    uint64_t entries = block_entries(c);
    uint64_t from = MAX(c->window_first, index * entries);
    uint64_t to = MIN(c->window_first + c->window_size, (index + 1) * entries);
    uint8_t *block;
    bool changed = false;
    int r = get_block(c, index, &block);
    if (r < 0 || !block)
        return r;
    for (uint64_t i = from; i < to; i++) {
        uint64_t have = refcount_entry_get(block, order, i % entries);
        uint64_t want = c->window[i - c->window_first] & CHECK_COUNT;
        want = want == CHECK_COUNT ? MAX(have, want) : want;
        want = MIN(want, check_count_max(c));
        if (raise ? have >= want : have <= want)
            continue;
        refcount_entry_set(block, order, i % entries, want);
        changed = true;
    }
    if (!changed)
        return 0;
    c->wrote = true;
    return io_file_write(c->q->base.file, block, c->q->cluster_size, c->table[index]);
}

int check_counts_fix(struct check *c, void *context)
{
    uint64_t entries = block_entries(c);
    uint64_t last = (c->window_first + c->window_size - 1) / entries;
    (void)context;
    for (int raise = 0; raise < 2; raise++) {
        int r = 0;
        for (uint64_t i = c->window_first / entries; r == 0 && i <= last && i < c->table_entries; i++)
            r = fix_block(c, i, raise);
        if (r == 0)
            r = check_flush(c);
        if (r < 0)
            return r;
    }
    return 0;
}
