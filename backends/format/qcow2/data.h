/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the qcow2 data path share: a layer's and a queue's state, and the steps of requests. */
#ifndef PLATTER_FORMAT_QCOW2_DATA_H
#define PLATTER_FORMAT_QCOW2_DATA_H

#include "backends/format/qcow2/chunk.h"
#include "backends/format/qcow2/keeper.h"
#include "backends/format/qcow2/map.h"
#include "backends/format/qcow2/qcow2.h"
#include "backends/format/qcow2/slice.h"

/* A shared L2 table being copied by the keeper; one at a time. */
struct table_copy {
    struct keeper_job job;
    struct qcow2 *q;
    bool running;
    uint32_t l1_index;
    uint8_t *buffer; /* one cluster, mmap */
    struct waiter *waiters;
};

/* The layer's, apart from slices and commit. */
struct data {
    _Atomic uint64_t file_end;  /* bytes: no valid cluster lies beyond; grows with allocation */
    uint32_t slice_entries;     /* L2 entries in a slice */
    uint32_t slice_entry_bits;  /* log2 of that */
    uint32_t slices_table_bits; /* log2 of slices in an L2 table */
    uint32_t sub_bits;          /* log2 of subclusters in a cluster: 0 or 5 */
    uint32_t sub_mask;          /* a bit for each subcluster */

    /* Under the layer's lock. */
    struct data_queue *queues;
    struct allocation *allocations;
    struct waiter *victim_waiters; /* for a slice that may be evicted */
    bool timer_armed;              /* some queue's */
    struct table_copy copy;

    struct inflater *inflater; /* worker that decompresses; made with the first queue, gone with the layer */
};

enum edge_kind { EDGE_NONE, EDGE_ZERO, EDGE_READ };

struct data_queue {
    struct layer_queue base;
    struct qcow2 *q;
    struct io_loop *loop;
    pthread_t thread;
    struct chunk_pool pools[2]; /* guest requests; inner reads */
    void *pages;
    uint8_t *zeros; /* one cluster, at least 64 KiB, never written: stays the kernel's zero page */
    size_t zeros_size;

    /* Buffers for copied edges. */
    uint8_t *edges;
    size_t edge_size; /* bytes of one buffer: two clusters */
    unsigned edge_count, edge_used;
    uint8_t *edge_free; /* linked through their first bytes */
    struct chunk *edge_waiting, **edge_waiting_tail;

    struct inflate_slots *slots;
    struct io_timer timer;
    bool timer_mine;

    /* Under the layer's lock. */
    struct data_queue *next;
    struct waiter *woken, **woken_tail;
    bool wake_posted;
    struct io_task wake_task;
};

/* ---- data.c */
/* Locked: everyone in `list` goes on, on its own loop, with `result`. */
void waiters_wake(struct waiter **list, int result);
/* Loop's thread, unlocked: metadata changed in memory; have it written some time, and soon when much waits. */
void data_dirtied(struct data_queue *queue);
/* Loop's thread, unlocked: a chunk was parked, maybe on a commit that somebody has to start. */
void data_parked(struct data_queue *queue);
/* Locked: the allocator gave `length` bytes at `host`: entries may point there. */
void data_took(struct qcow2 *q, uint64_t host, uint64_t length);
/* Anonymous memory that costs nothing until touched; NULL when there is none. */
void *data_map(size_t size, bool writable);
void data_unmap(void *memory, size_t size);

/* ---- steps: true = given out, false = parked (chunk.h) */
bool read_step(struct chunk *chunk);
bool write_step(struct chunk *chunk);
bool zero_step(struct chunk *chunk);
bool status_step(struct chunk *chunk);
bool flush_step(struct chunk *chunk);

/* write.c: like write_step for the next `length` bytes at most. */
bool write_part(struct chunk *chunk, uint64_t length);
/* write.c, locked: an allocation in flight in these guest clusters, or NULL; the first when there are several. */
struct allocation *allocation_overlap(struct qcow2 *q, uint64_t first, uint64_t count);
/* write.c, locked: drop the reference that a table entry held. */
void entry_free(struct qcow2 *q, const struct entry *entry);

/* cow.c: the plan is in the chunk; read old edges, write, link. */
void cow_start(struct chunk *chunk);
/* write.c, unlocked: the write of the chunk's allocation ended; link it or give it back. Ends the chunk. */
void write_finish(struct chunk *chunk, int result);

/* compressed.c */
bool compressed_read(struct chunk *chunk, const struct mapping *mapping);
int inflater_create(struct qcow2 *q, struct inflater **ret_inflater, struct error *err);
struct inflater *inflater_destroy(struct inflater *inflater);
int inflate_slots_create(struct data_queue *queue, struct inflate_slots **ret_slots, struct error *err);
struct inflate_slots *inflate_slots_destroy(struct inflate_slots *slots);

/* table.c, locked: the slice that holds the entry of guest `offset`, READY; with `write` its table is this image's own
 * and exists. 0, CHUNK_PARKED (chunk waits or loads it), -ENOENT without `write` where the L1 entry is 0, or -errno. */
int table_slice(struct chunk *chunk, uint64_t offset, bool write, struct slice **ret_slice);

#endif
