// SPDX-License-Identifier: Apache-2.0
/*
 * Reference counts from the tables, into new blocks and a new table behind the end of the file, where nothing is in use; the
 * header changes to them in one sector. The old blocks and table are simply not counted. A crash before that leaves the
 * image as it was.
 *
 * The windows come in ascending order, so the blocks are written one after another as they fill, only those in which
 * something is counted. The clusters of the new area are the last of all; how many they are follows from how many blocks
 * they need themselves.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/format/qcow2/check.h"
#include "backends/format/qcow2/refcount.h"
#include "common/bytes.h"
#include "common/checked.h"
#include "common/cleanup.h"

struct rebuild {
    struct check *c;
    uint64_t start;  /* first cluster of the new area */
    uint64_t blocks; /* begun so far; the first one is cluster `start` */
    uint64_t index;  /* of the block being filled, UINT64_MAX = none */
    uint8_t *block;
    uint64_t entries; /* counts in a block */
    uint64_t *table;  /* grows up to the format's end */
    uint64_t table_room;
};

static int end_block(struct rebuild *rb)
{
    const struct qcow2 *q = rb->c->q;
    if (rb->index == UINT64_MAX)
        return 0;
    rb->index = UINT64_MAX;
    return io_file_write(q->base.file, rb->block, q->cluster_size, (rb->start + rb->blocks - 1) << q->cluster_bits);
}

static int table_reserve(struct rebuild *rb, uint64_t entries)
{
    if (entries > QCOW2_REFTABLE_MAX_BYTES / 8)
        return -EFBIG;
    if (entries <= rb->table_room)
        return 0;
    uint64_t room = align_up(MAX(entries, rb->table_room * 2), MAX(rb->c->q->cluster_size, 4096) / 8);
    uint64_t *table = aligned_alloc(4096, room * 8);
    if (!table)
        return -ENOMEM;
    memset(table, 0, room * 8);
    if (rb->table)
        memcpy(table, rb->table, rb->table_room * 8);
    free(rb->table);
    rb->table = table;
    rb->table_room = room;
    return 0;
}

static int begin_block(struct rebuild *rb, uint64_t index)
{
    int r = end_block(rb);
    if (r == 0)
        r = table_reserve(rb, index + 1);
    if (r < 0)
        return r;
    memset(rb->block, 0, rb->c->q->cluster_size);
    store_be64(&rb->table[index], (rb->start + rb->blocks) << rb->c->q->cluster_bits);
    rb->index = index;
    rb->blocks++;
    return 0;
}

static int put(struct rebuild *rb, uint64_t cluster, uint64_t count)
{
    uint64_t index = cluster / rb->entries;
    int r = rb->index == index ? 0 : begin_block(rb, index);
    if (r == 0)
        refcount_entry_set(rb->block, rb->c->q->header.refcount_order, cluster % rb->entries,
                           MIN(count, check_count_max(rb->c)));
    return r;
}

static int put_window(struct check *c, void *context)
{
    struct rebuild *rb = context;
    int r = 0;
    for (uint64_t i = 0; r == 0 && i < c->window_size && c->window_first + i < c->clusters; i++)
        if (c->window[i])
            r = put(rb, c->window_first + i, c->window[i] & CHECK_COUNT);
    return r;
}

/* Clusters of the new area, and how many of them are the table. */
static void size_area(const struct rebuild *rb, uint64_t *ret_area, uint64_t *ret_table)
{
    uint64_t first = rb->start / rb->entries;
    uint64_t table = 1;
    uint64_t area = rb->blocks + table;
    for (;;) {
        uint64_t last = (rb->start + area - 1) / rb->entries;
        uint64_t more = last - first + 1 - (rb->index == first);
        table = div_round_up((last + 1) * 8, rb->c->q->cluster_size);
        if (rb->blocks + more + table <= area)
            break;
        area = rb->blocks + more + table;
    }
    *ret_area = area;
    *ret_table = table;
}

static int put_area(struct rebuild *rb, uint64_t *ret_table)
{
    struct qcow2 *q = rb->c->q;
    uint64_t area, table;
    size_area(rb, &area, &table);
    uint64_t entries = (table << q->cluster_bits) / 8;
    int r = table_reserve(rb, entries);
    for (uint64_t i = 0; r == 0 && i < area; i++)
        r = put(rb, rb->start + i, 1);
    if (r == 0)
        r = end_block(rb);
    if (r == 0)
        r = io_file_write(q->base.file, rb->table, entries * 8, (rb->start + area - table) << q->cluster_bits);
    if (r == 0)
        r = io_file_flush(q->base.file);
    *ret_table = table;
    return r;
}

static int switch_header(struct rebuild *rb, uint64_t table, uint64_t table_clusters, uint64_t incompatible)
{
    struct check *c = rb->c;
    struct qcow2 *q = c->q;
    struct header next = q->header;
    next.refcount_table_offset = table << q->cluster_bits;
    next.refcount_table_clusters = (uint32_t)table_clusters;
    next.incompatible = incompatible;
    int r = header_write(q->base.file, &next);
    if (r == 0)
        r = io_file_flush(q->base.file);
    if (r == 0)
        r = io_file_length(q->base.file, &q->file_length_at_open);
    if (r < 0)
        return r;
    q->header = next;
    r = check_set_clusters(c, div_round_up(q->file_length_at_open, q->cluster_size));
    return r < 0 ? r : check_counts_load(c);
}

int check_rebuild(struct check *c, uint64_t incompatible, struct error *err)
{
    struct rebuild rb = {.c = c, .start = c->clusters, .index = UINT64_MAX};
    struct qcow2 *q = c->q;
    uint64_t table = 0;
    rb.entries = (q->cluster_size * 8) >> q->header.refcount_order;
    CLEANUP_FREE uint8_t *block = aligned_alloc(4096, align_up(q->cluster_size, 4096));
    rb.block = block;
    c->without_counts = true;
    int r = block ? check_windows(c, put_window, &rb, err) : error_sys(err, ENOMEM, "rebuild reference counts");
    c->without_counts = false;
    if (r == 0) {
        r = put_area(&rb, &table);
        if (r == 0)
            r = switch_header(&rb, rb.start + rb.blocks, table, incompatible);
        if (r < 0)
            (void)error_sys(err, r, "rebuild reference counts");
    }
    free(rb.table);
    return r;
}
