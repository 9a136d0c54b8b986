/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The allocator inside: what allocator.c (loops) and reserve.c, release.c (keeper) share.
 *
 * Bounds: a run is 16 MiB of clusters, but at least 16 clusters, and no more than a sixteenth of the virtual disk unless
 * that is below 16 clusters; that is what a crash leaks at most. At most RESERVED_MAX extents wait to be taken.
 * Freed extents wait in a ring that starts with room for twice the entries of an L2 table (at least 8192 extents) and is
 * doubled by the keeper whenever it is half full, up to FREED_MAX extents (16 MiB of memory). Beyond that a free is
 * dropped: its clusters stay counted (a leak that check repairs) and are added to `leaked`.
 *
 * Never wait for a grace period on the keeper: requests in flight may be waiting for one of its jobs.
 *
 * Locks, outer first: q->lock (the caller's), work, lock. `work` is held across I/O, by threads that may block only.
 */
#ifndef PLATTER_FORMAT_QCOW2_RESERVE_H
#define PLATTER_FORMAT_QCOW2_RESERVE_H

#include "backends/format/qcow2/allocator.h"
#include "backends/format/qcow2/guard.h"
#include "backends/format/qcow2/keeper.h"

#define REFILL_EXTENTS 64u
#define RESERVED_MAX (3 * REFILL_EXTENTS)
#define FREED_MAX (UINT64_C(1) << 20)

struct allocator {
    struct qcow2 *q;
    uint64_t run; /* clusters */

    pthread_mutex_t lock; /* short: for all of this paragraph */
    struct extent reserved[RESERVED_MAX];
    unsigned reserved_first, reserved_count; /* a ring */
    uint64_t reserved_clusters;
    struct alloc_waiter *waiters, **waiters_last;
    bool refilling;       /* the job is with the keeper */
    struct extent *freed; /* a ring of `freed_size`, a power of two, indexed by positions that only grow */
    uint64_t freed_size;
    /* [head, graced) may be released, [graced, ready) is durably unlinked, [ready, tied) in a commit, [tied, tail) newer */
    uint64_t head, graced, ready, tied, tail;
    uint64_t freed_new; /* clusters in [tied, tail) */
    bool releasing;     /* the job is with the reaper */
    bool growing;       /* the job is with the keeper */
    bool closing;
    uint64_t leaked;                   /* clusters whose free was dropped */
    uint64_t taken_total, freed_total; /* clusters, since it was opened */

    pthread_mutex_t work; /* for all below, and for q->refcounts */
    uint64_t keep;        /* bytes: the file is not made shorter than this */
    uint64_t cursor;      /* no free cluster below */
    uint64_t fresh_from;  /* clusters from here on were never used: zeros */
    uint64_t refused;     /* extents that the overlap guard kept from being taken or freed */
    uint64_t underflows;  /* clusters freed more often than counted */

    /* Waiting for a grace period means waiting for requests, and those may wait for the keeper: so a thread of its own,
     * which does not hold `work` meanwhile. */
    struct keeper *reaper;

    struct keeper_job refill, release, grow;
};

/* keeper_job functions of the three jobs above. */
int reserve_refill(struct keeper_job *job);
int release_freed(struct keeper_job *job);
int release_grow_ring(struct keeper_job *job);

/* Holder of `work`. Reserve up to `want` clusters in at most `max` extents; durable. -ENOSPC, -EIO, ... */
int reserve_extents(struct allocator *a, uint64_t want, struct extent *ret_extents, size_t max, size_t *ret_count);
/* Holder of `work`. Take one reference from each cluster of `extents`, punch those that have none left. The counts are
 * written, not flushed. */
void release_extents(struct allocator *a, const struct extent *extents, size_t count);
/* Holder of `work`. Releases a batch of what has had its grace period. False when there was nothing. */
bool release_graced(struct allocator *a);
/* Not a holder of `work`, nor the keeper: a grace period for all that is durably unlinked. */
void release_grace(struct allocator *a);

#endif
