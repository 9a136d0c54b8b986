/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reference counts of host clusters: the refcount table, kept whole in memory, and a bounded cache of refcount blocks
 * (the specification, "Host cluster management"). All widths, 1 to 64 bits.
 *
 * Thread: the holder of the allocator's work lock (reserve.h): the keeper, or the control thread. Everything blocks.
 * Nothing here is durable before refcounts_sync, except what says so. Units are clusters of the file.
 *
 * Order on disk: a new refcount block is written and flushed before the table points to it; a new table before the
 * header does; the old table loses its reference only after that header is durable. A failed write stays dirty and is
 * tried again by the next refcounts_sync; a failed flush fences the image (image_fail).
 */
#ifndef PLATTER_FORMAT_QCOW2_REFCOUNT_H
#define PLATTER_FORMAT_QCOW2_REFCOUNT_H

#include "backends/format/qcow2/qcow2.h"

struct refcount_block {
    uint64_t index;                /* in the table */
    uint8_t *data;                 /* one cluster, NULL = empty slot */
    uint64_t used;                 /* clock of the last use */
    uint32_t dirty_from, dirty_to; /* bytes; from >= to: clean */
};

struct refcounts {
    struct qcow2 *q;
    unsigned order;         /* log2 of the width in bits */
    uint64_t max;           /* largest count of that width */
    uint64_t block_entries; /* counts in a block */
    uint64_t *table;        /* offset of each block in bytes, 0 = none */
    uint64_t table_entries;
    uint64_t table_dirty_from, table_dirty_to; /* entries; from >= to: clean */
    bool header_dirty;                         /* the table has moved, the header on disk does not say so yet */
    uint64_t old_table, old_table_clusters;    /* lose their reference once the header is durable; 0 = none */
    uint64_t
        lowest_freed; /* lowest cluster of a table that lost its reference, UINT64_MAX = none; reset by the reader */
    struct refcount_block *blocks;
    struct refcount_block *recent; /* of the last look-up, or NULL */
    unsigned slots;
    uint64_t clock;
    uint64_t file_length; /* bytes; the file is extended by refcounts_ensure_length only */
};

/* Read and validate the table of a writable layer (q->header, q->file_length_at_open). Code "corrupt-image". */
int refcounts_open(struct qcow2 *q, struct refcounts **ret_refcounts, struct error *err);
/* Drops what is not written. NULL is allowed. Returns NULL. */
struct refcounts *refcounts_destroy(struct refcounts *refcounts);

int refcounts_get(struct refcounts *refcounts, uint64_t cluster, uint64_t *ret_count);
/* Add `delta` (+1 or -1) to `count` clusters. -ERANGE when one would leave 0 .. max, -ENOENT where no block is: then all
 * before it are changed and *ret_changed tells how many. */
int refcounts_adjust(struct refcounts *refcounts, uint64_t cluster, uint64_t count, int delta, uint64_t *ret_changed);
/* Set one count. -ENOENT where no block is, -ERANGE. */
int refcounts_set(struct refcounts *refcounts, uint64_t cluster, uint64_t value);

/* The first free clusters at or after `from`, at most `want`, within one block or, where ret_missing, in space that no
 * block covers (then *ret_count is the space up to the next block, possibly without bound). -ENOSPC: the format's end. */
int refcounts_find_free(struct refcounts *refcounts, uint64_t from, uint64_t want, uint64_t *ret_cluster,
                        uint64_t *ret_count, bool *ret_missing);
/* Take up to `want` clusters with count 1, and set up the blocks (and a larger table) for them, in [start, start +
 * span), all of it without blocks. The blocks are durable on return; the rest is by refcounts_sync. */
int refcounts_extend(struct refcounts *refcounts, uint64_t start, uint64_t span, uint64_t want, uint64_t *ret_cluster,
                     uint64_t *ret_count);
/* Clusters from `start` on that refcounts_extend would use for `want`, tables included. -ENOSPC. */
int refcounts_extend_size(const struct refcounts *refcounts, uint64_t start, uint64_t span, uint64_t want,
                          uint64_t *ret_size);

/* One past the last cluster with a count above 0, below `limit`. */
int refcounts_end(struct refcounts *refcounts, uint64_t limit, uint64_t *ret_end);

/* Make the file at least `bytes` long, extending it in large steps: a 64th of the virtual size, but 1 to 64 MiB,
 * and less only where there is no room. -ENOSPC. */
int refcounts_ensure_length(struct refcounts *refcounts, uint64_t bytes);

/* Write what is dirty; without and with making everything durable. */
int refcounts_write(struct refcounts *refcounts);
int refcounts_sync(struct refcounts *refcounts);

/* For refcount_grow.c: read and change an entry of a block in memory. */
uint64_t refcount_entry_get(const uint8_t *block, unsigned order, uint64_t index);
void refcount_entry_set(uint8_t *block, unsigned order, uint64_t index, uint64_t value);

#endif
