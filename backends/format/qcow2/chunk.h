/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests, cut into chunks. A chunk is one contiguous host run, one allocation with its copied edges, one
 * compressed cluster, or one request to the layer below. Chunks come from a fixed pool of each queue; a request that
 * finds the pool empty goes on when chunks return. All of it belongs to the queue's loop thread.
 *
 * Handing out goes in order: a request holds at most one chunk that is not yet given out. Its step function maps
 * what comes next and either gives the chunk out (true) or parks it on what it waits for (false); whoever wakes it
 * calls chunk_resume. While parked it holds nothing but itself, so parked chunks cannot block each other.
 */
#ifndef PLATTER_FORMAT_QCOW2_CHUNK_H
#define PLATTER_FORMAT_QCOW2_CHUNK_H

#include "backends/format/layer.h"
#include "backends/format/qcow2/allocator.h"

struct data_queue;
struct slice;

#define CHUNK_IOV 130u       /* a guest's 128 segments and two edges */
#define CHUNK_POOL_MAIN 128u /* chunks of guest requests on one queue */
#define CHUNK_POOL_INNER 16u /* chunks for reads of old content by the queue's own allocations */

/* Set in the flags of reads that an allocation makes of its own layer: they use the second pool, so that
 * allocations that fill the first one can always finish. */
#define REQUEST_INNER (UINT32_C(1) << 31)

/* What a step returns up its own helpers when the chunk was parked. */
#define CHUNK_PARKED 1

/* A place in a list of those who wait for something under the layer's lock. */
struct waiter {
    struct waiter *next;
    struct data_queue *queue;
    void (*woken)(struct waiter *waiter, int result); /* on the queue's loop, without the lock */
    int result;
};

/* Clusters on their way from taken to linked; kept in a list under the layer's lock. */
struct allocation {
    struct allocation *next, **link;
    uint64_t first, count; /* guest clusters */
    uint64_t host;         /* bytes: the first cluster's place */
    uint8_t kind;          /* enum write_kind */
    bool taken;            /* from the allocator, so it goes back on failure */
    bool barrier;          /* replaces visible older content */
    struct slice *slice;   /* pinned */
    struct waiter *waiters;
};

struct chunk {
    struct io_op op;
    struct data_queue *queue;
    struct chunk *next; /* in the pool, or in a list of the queue */
    struct image_request *request;
    uint64_t skip, length; /* bytes: the part of the request */

    struct waiter waiter;
    struct alloc_waiter alloc;
    struct io_task task; /* to yield */
    struct slice *loading;
    uint8_t loads; /* tries of that */
    void *page;    /* 4 KiB for a table slice on its way in */

    struct allocation allocation;
    uint64_t edge[2];     /* bytes: old content before and after the new */
    uint8_t edge_kind[2]; /* enum edge_kind */
    uint8_t *edge_buffer; /* two clusters */
    struct image_request child[2];
    struct iovec child_iov[2];
    unsigned child_pending;
    int child_result;

    struct image_status child_status;

    struct iovec iov[CHUNK_IOV];
};

struct chunk_pool {
    struct chunk *chunks; /* mmap, touched as used */
    unsigned count, used;
    struct chunk *free;
    struct image_request *waiting, **waiting_tail;
    bool draining;
};

int chunk_pool_init(struct chunk_pool *pool, unsigned count, struct error *err);
void chunk_pool_done(struct chunk_pool *pool);

/* Start handing out. */
void request_start(struct data_queue *queue, struct image_request *request);

/* Count the next `length` bytes of the request as given out with this chunk, which chunk_done ends. */
void chunk_begin(struct chunk *chunk, uint64_t length);
void chunk_done(struct chunk *chunk, int result);
/* For steps: the next `length` bytes need no I/O (any more). Gives the chunk back. Returns true. */
bool chunk_skip(struct chunk *chunk, uint64_t length);
/* For steps: the request fails; nothing more of it is handed out. Gives the chunk back. Returns true. */
bool chunk_fail(struct chunk *chunk, int result);
/* A parked chunk goes on with its step. */
void chunk_resume(struct chunk *chunk);

/* Under the layer's lock: put the chunk into `list`; when woken it goes on, or fails with the result. */
int chunk_park(struct chunk *chunk, struct waiter **list);
/* Let the loop breathe; then the chunk goes on. */
void chunk_yield(struct chunk *chunk);

/* Point op.iov at the request's bytes [skip, skip + length) (zeros for WRITE_ZEROES) with room for an edge at each
 * end; returns the bytes covered, which may be less. */
uint64_t chunk_map_iov(struct chunk *chunk, uint64_t length);
/* One I/O on the layer's file for the next `length` bytes at host offset `host`. Returns true. */
bool chunk_transfer(struct chunk *chunk, enum io_kind kind, uint64_t host, uint64_t length);

#endif
