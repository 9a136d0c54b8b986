// SPDX-License-Identifier: Apache-2.0
/*
 * Giving clusters back, on the reaper: after the commit that made their unlinking durable and a grace period for those who
 * may still read them, take one reference each, and punch those that have none left before anyone can take them.
 *
 * A count is lowered in memory before its cluster is punched, but nothing is taken in between: both happen under `work`.
 * On disk the order does not matter, as whatever has no count is made zero again before it is handed out.
 */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "backends/format/qcow2/refcount.h"
#include "backends/format/qcow2/reserve.h"
#include "common/checked.h"
#include "common/cleanup.h"

#define RUNS_MAX 256u
#define BATCH_MAX 256u /* extents under one hold of `work` */

struct runs {
    struct extent list[RUNS_MAX];
    size_t count;
};

static int by_cluster(const void *left, const void *right)
{
    const struct extent *a = left;
    const struct extent *b = right;
    return (a->cluster > b->cluster) - (a->cluster < b->cluster);
}

/* Punch what has no reference any more. What is a table after all gets its reference back. */
static void punch_runs(struct allocator *a, struct runs *runs)
{
    bool hits[RUNS_MAX];
    qsort(runs->list, runs->count, sizeof(runs->list[0]), by_cluster);
    (void)guard_check(a->q, runs->list, runs->count, hits);
    for (size_t i = 0; i < runs->count; i++) {
        const struct extent *run = &runs->list[i];
        if (hits[i]) {
            (void)refcounts_adjust(a->q->refcounts, run->cluster, run->count, 1, NULL);
            a->refused++;
            continue;
        }
        /* For the space only: reserving makes it zero again, so a failure costs nothing else. */
        (void)io_file_discard(a->q->base.file, run->cluster << a->q->cluster_bits, run->count << a->q->cluster_bits);
        a->cursor = MIN(a->cursor, run->cluster);
    }
    runs->count = 0;
}

static void add_run(struct allocator *a, struct runs *runs, uint64_t cluster)
{
    struct extent *last = runs->count > 0 ? &runs->list[runs->count - 1] : NULL;
    if (last && last->cluster + last->count == cluster) {
        last->count++;
        return;
    }
    if (runs->count == RUNS_MAX)
        punch_runs(a, runs);
    runs->list[runs->count++] = (struct extent){.cluster = cluster, .count = 1};
}

void release_extents(struct allocator *a, const struct extent *extents, size_t count)
{
    struct refcounts *rc = a->q->refcounts;
    struct runs runs = {.count = 0};
    for (size_t i = 0; i < count; i++) {
        for (uint64_t c = extents[i].cluster; c < extents[i].cluster + extents[i].count; c++) {
            uint64_t left = 0;
            int r = c == 0 ? -ERANGE : refcounts_adjust(rc, c, 1, -1, NULL);
            if (r == 0)
                r = refcounts_get(rc, c, &left);
            if (r < 0)
                a->underflows++; /* or unreadable: stays counted */
            else if (left == 0)
                add_run(a, &runs, c);
        }
    }
    punch_runs(a, &runs);
    (void)refcounts_write(rc); /* what fails stays dirty and goes with the next one */
}

/* ---- the ring ------------------------------------------------------------------------------------------------ */

void release_grace(struct allocator *a)
{
    uint64_t ready = 0;
    {
        LOCK_SCOPE(&a->lock);
        ready = a->ready;
        if (a->graced == ready)
            return;
    }
    image_grace(a->q->base.image);
    LOCK_SCOPE(&a->lock);
    a->graced = ready;
}

bool release_graced(struct allocator *a)
{
    struct extent batch[BATCH_MAX];
    size_t count = 0;
    {
        LOCK_SCOPE(&a->lock);
        while (count < BATCH_MAX && a->head + count < a->graced) {
            batch[count] = a->freed[(a->head + count) & (a->freed_size - 1)];
            count++;
        }
        a->head += count;
    }
    if (count == 0)
        return false;
    qsort(batch, count, sizeof(batch[0]), by_cluster);
    release_extents(a, batch, count);
    return true;
}

static bool release_more(struct allocator *a)
{
    LOCK_SCOPE(&a->lock);
    a->releasing = a->head < a->ready && !a->closing && !image_failed(a->q->base.image);
    return a->releasing;
}

int release_freed(struct keeper_job *job)
{
    struct allocator *a = (struct allocator *)((char *)job - offsetof(struct allocator, release));
    while (release_more(a)) {
        release_grace(a);
        LOCK_SCOPE(&a->work); /* for one batch, so that refills are not kept waiting */
        (void)release_graced(a);
    }
    return 0;
}

int release_grow_ring(struct keeper_job *job)
{
    struct allocator *a = (struct allocator *)((char *)job - offsetof(struct allocator, grow));
    uint64_t size = MIN(a->freed_size * 2, FREED_MAX); /* only this job changes it */
    CLEANUP_FREE struct extent *old = NULL;
    CLEANUP_FREE struct extent *ring = calloc(size, sizeof(*ring));
    LOCK_SCOPE(&a->lock);
    for (uint64_t at = a->head; ring && at < a->tail; at++)
        ring[at & (size - 1)] = a->freed[at & (a->freed_size - 1)];
    if (ring) {
        old = a->freed;
        a->freed = steal_ptr(&ring);
        a->freed_size = size;
    }
    a->growing = false;
    return 0;
}
