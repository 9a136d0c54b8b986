/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Host clusters: reserved in runs ahead of use by the keeper, handed out in file order to the loops, and taken back
 * once unlinked. See qcow2.h for the ordering that this keeps.
 */
#ifndef PLATTER_FORMAT_QCOW2_ALLOCATOR_H
#define PLATTER_FORMAT_QCOW2_ALLOCATOR_H

#include "backends/io/io.h"
#include "common/error.h"

struct allocator;
struct qcow2;

/* Control thread, at open of a writable layer, after refcounts and keeper. */
int allocator_create(struct qcow2 *q, struct allocator **ret_allocator, struct error *err);
/* Control thread, no queues, everything committed: gives back what is reserved but unused and what is freed, trims the
 * file's tail. Frees in any case. NULL is allowed. */
int allocator_destroy(struct allocator *allocator);

/* ---- loops (any thread, never blocks) ----------------------------------------------------------------------- */

struct alloc_waiter {
    struct io_task task; /* set task.run before; posted on `loop` when trying again makes sense */
    struct io_loop *loop;
    struct alloc_waiter *next; /* the allocator's own, as is `failed`; zero both before the first use */
    int failed;                /* the refill that it waited for failed: its next take reports this */
};

/* Take up to `want` contiguous clusters: reference count 1, zeros and file length durable. 0 with offset (bytes) and
 * count (>= 1); -EAGAIN: `waiter` is queued; -ENOSPC or -EIO: final for this request (later ones try again). */
int allocator_take(struct allocator *allocator, uint64_t want, uint64_t *ret_offset, uint64_t *ret_count,
                   struct alloc_waiter *waiter);

/* Clusters whose last table entry was removed (or changed) in memory just now, under q->lock: drop one reference of
 * each of `count` clusters from `offset`, once the next commit is durable. Also for clusters taken and never linked.
 * Bounded memory: see allocator_pressure. */
void allocator_free(struct allocator *allocator, uint64_t offset, uint64_t count);
/* True when so much waits to be freed that a commit should run although no flush asked for it. */
bool allocator_pressure(const struct allocator *allocator);

/* Around a commit (data path, one at a time): begin, called under q->lock in the same critical section that collects the
 * dirty tables, ties everything freed so far to this commit; end with its result, after its last flush. */
void allocator_commit_begin(struct allocator *allocator);
void allocator_commit_end(struct allocator *allocator, int result);
/* True when freed clusters are on their way back: waiting for a commit, a grace period, or the reaper. */
bool allocator_freeing(const struct allocator *allocator);
/* True when freed clusters wait for a commit. */
bool allocator_has_freed(const struct allocator *allocator);

/* ---- keeper thread, or control thread while drained (may block) ---------------------------------------------- */

/* `count` contiguous clusters at once, for tables; as durable as those of allocator_take. */
int allocator_take_blocking(struct allocator *allocator, uint64_t count, uint64_t *ret_offset, struct error *err);

#endif
