// SPDX-License-Identifier: Apache-2.0
/*
 * The allocator: the loops' side, which moves extents between fixed lists under a short lock and leaves all work to the
 * keeper (reserve.c, release.c).
 */
#include "backends/format/qcow2/allocator.h"

#include <errno.h>
#include <stdlib.h>

#include "backends/format/qcow2/refcount.h"
#include "backends/format/qcow2/reserve.h"
#include "common/checked.h"
#include "common/cleanup.h"
#include "common/log.h"

#define RUN_BYTES (16 * MIB)
#define RUN_CLUSTERS_MIN 16u
#define FREED_MIN 8192u
#define PRESSURE_BYTES (256 * MIB)

/* ---- create, destroy ----------------------------------------------------------------------------------------- */

/* Space at the end of the file that nothing counts was reserved before a crash, or is data whose counts were lost: not ours
 * to cut off then. A crash leaves no more of it than was reserved, and that is used first. */
static int find_kept(struct allocator *a)
{
    struct refcounts *rc = a->q->refcounts;
    uint64_t count = 0;
    int r = refcounts_get(rc, (rc->file_length - 1) >> a->q->cluster_bits, &count);
    if (r == 0 && count == 0)
        a->keep = rc->file_length;
    return r;
}

int allocator_create(struct qcow2 *q, struct allocator **ret_allocator, struct error *err)
{
    struct allocator *a = calloc(1, sizeof(*a));
    if (!a)
        return error_sys(err, ENOMEM, "allocator");
    uint64_t virtual_clusters = q->base.size >> q->cluster_bits;
    a->q = q;
    a->run = MAX(MIN(RUN_BYTES >> q->cluster_bits, virtual_clusters / 16), RUN_CLUSTERS_MIN);
    a->waiters_last = &a->waiters;
    a->freed_size = MAX(UINT64_C(2) << q->l2_bits, FREED_MIN);
    a->freed = calloc(a->freed_size, sizeof(*a->freed));
    a->cursor = 1;
    a->fresh_from = div_round_up(q->file_length_at_open, q->cluster_size);
    a->refill.run = reserve_refill;
    a->release.run = release_freed;
    a->grow.run = release_grow_ring;
    int r = a->freed ? find_kept(a) : -ENOMEM;
    if (r < 0)
        (void)error_sys(err, r, "reference counts at the end of the file");
    else
        r = keeper_create("qcow2-reaper", &a->reaper, err);
    if (r < 0) {
        free(a->freed);
        free(a);
        return r;
    }
    (void)pthread_mutex_init(&a->lock, NULL);
    (void)pthread_mutex_init(&a->work, NULL);
    *ret_allocator = a;
    return 0;
}

/* Cut off what lies behind the last cluster in use, and the space that was allocated ahead. */
static int trim_tail(struct allocator *a)
{
    struct qcow2 *q = a->q;
    struct refcounts *rc = q->refcounts;
    uint64_t end = 0;
    int r = refcounts_end(rc, div_round_up(rc->file_length, q->cluster_size), &end);
    if (r < 0 || q->base.file->block_device)
        return r;
    uint64_t bytes = MAX(MAX(end << q->cluster_bits, a->keep), align_up(guard_end(q), q->cluster_size));
    if (bytes >= rc->file_length)
        return 0;
    r = io_file_truncate(q->base.file, bytes);
    if (r == 0)
        rc->file_length = bytes;
    return r;
}

struct destroy_call {
    struct keeper_job job;
    struct allocator *allocator;
};

static int give_back(struct keeper_job *job)
{
    struct allocator *a = ((struct destroy_call *)job)->allocator;
    int failed = image_failed(a->q->base.image);
    if (failed)
        return failed;
    LOCK_SCOPE(&a->work);
    while (release_graced(a))
        continue;
    while (a->reserved_count > 0) {
        release_extents(a, &a->reserved[a->reserved_first], 1);
        a->reserved_first = (a->reserved_first + 1) % RESERVED_MAX;
        a->reserved_count--;
    }
    int r = refcounts_sync(a->q->refcounts); /* before the cut: no count above 0 may lie beyond the end */
    if (r == 0)
        r = trim_tail(a);
    return r < 0 ? r : refcounts_sync(a->q->refcounts);
}

/* Once for each image: ordinary numbers for who asks for them, what should not be for everybody. */
static void log_counters(const struct allocator *a, uint64_t reserved)
{
    bool odd = a->leaked || a->refused || a->underflows;
    log_write(odd ? LOG_LEVEL_WARNING : LOG_LEVEL_DEBUG,
              "qcow2 image closed: clusters: %llu taken, %llu freed, %llu reserved and given back, %llu leaked, "
              "%llu extents refused by the overlap guard, %llu miscounted or unreadable",
              (unsigned long long)a->taken_total, (unsigned long long)a->freed_total, (unsigned long long)reserved,
              (unsigned long long)a->leaked, (unsigned long long)a->refused, (unsigned long long)a->underflows);
}

static int nothing(struct keeper_job *job)
{
    (void)job;
    return 0;
}

int allocator_destroy(struct allocator *a)
{
    if (!a)
        return 0;
    {
        LOCK_SCOPE(&a->lock);
        a->closing = true;
    }
    a->reaper = keeper_destroy(a->reaper);
    release_grace(a);
    /* A fenced image stays as it is: what the last commits did on disk is not known. The call also waits for the jobs
     * that are still with the keeper. */
    uint64_t reserved = a->reserved_clusters;
    struct destroy_call call = {.job.run = give_back, .allocator = a};
    int r = keeper_call(a->q->keeper, &call.job);
    struct keeper_job last = {.run = nothing}; /* a violation found just now has left a job there */
    (void)keeper_call(a->q->keeper, &last);
    log_counters(a, reserved);
    (void)pthread_mutex_destroy(&a->work);
    (void)pthread_mutex_destroy(&a->lock);
    free(a->freed);
    free(a);
    return r;
}

/* ---- taking -------------------------------------------------------------------------------------------------- */

/* Under a->lock. */
static void want_refill(struct allocator *a)
{
    if (a->refilling || a->reserved_clusters >= a->run / 2 || a->reserved_count > RESERVED_MAX - REFILL_EXTENTS)
        return;
    a->refilling = true;
    keeper_submit(a->q->keeper, &a->refill);
}

int allocator_take(struct allocator *a, uint64_t want, uint64_t *ret_offset, uint64_t *ret_count,
                   struct alloc_waiter *waiter)
{
    LOCK_SCOPE(&a->lock);
    int failed = waiter->failed;
    waiter->failed = 0;
    if (a->reserved_count == 0) {
        if (failed)
            return failed;
        waiter->next = NULL;
        *a->waiters_last = waiter;
        a->waiters_last = &waiter->next;
        want_refill(a);
        return -EAGAIN;
    }
    struct extent *first = &a->reserved[a->reserved_first];
    uint64_t count = MIN(want, first->count);
    *ret_offset = first->cluster << a->q->cluster_bits;
    *ret_count = count;
    a->taken_total += count;
    first->cluster += count;
    first->count -= count;
    a->reserved_clusters -= count;
    if (first->count == 0) {
        a->reserved_first = (a->reserved_first + 1) % RESERVED_MAX;
        a->reserved_count--;
    }
    want_refill(a);
    return 0;
}

/* ---- freeing ------------------------------------------------------------------------------------------------- */

static bool try_merge(struct allocator *a, uint64_t cluster, uint64_t count)
{
    if (a->tail == a->tied)
        return false;
    struct extent *last = &a->freed[(a->tail - 1) & (a->freed_size - 1)];
    if (last->cluster + last->count == cluster) {
        last->count += count;
        return true;
    }
    if (cluster + count == last->cluster) {
        last->cluster = cluster;
        last->count += count;
        return true;
    }
    return false;
}

void allocator_free(struct allocator *a, uint64_t offset, uint64_t count)
{
    uint64_t cluster = offset >> a->q->cluster_bits;
    LOCK_SCOPE(&a->lock);
    if (count == 0)
        return;
    a->freed_total += count;
    if (!try_merge(a, cluster, count)) {
        if (a->tail - a->head == a->freed_size) {
            a->leaked += count;
            return;
        }
        a->freed[a->tail & (a->freed_size - 1)] = (struct extent){.cluster = cluster, .count = count};
        a->tail++;
    }
    a->freed_new += count;
    if (a->tail - a->head > a->freed_size / 2 && a->freed_size < FREED_MAX && !a->growing) {
        a->growing = true;
        keeper_submit(a->q->keeper, &a->grow);
    }
}

bool allocator_pressure(const struct allocator *allocator)
{
    struct allocator *a = (struct allocator *)allocator; /* for its lock only */
    LOCK_SCOPE(&a->lock);
    return a->tail - a->tied > a->freed_size / 4 || a->freed_new >= MAX(PRESSURE_BYTES >> a->q->cluster_bits, 1);
}

bool allocator_has_freed(const struct allocator *allocator)
{
    struct allocator *a = (struct allocator *)allocator; /* for its lock only */
    LOCK_SCOPE(&a->lock);
    return a->tail > a->tied;
}

void allocator_commit_begin(struct allocator *a)
{
    LOCK_SCOPE(&a->lock);
    a->tied = a->tail;
    a->freed_new = 0;
}

void allocator_commit_end(struct allocator *a, int result)
{
    LOCK_SCOPE(&a->lock);
    if (result < 0) {
        for (uint64_t at = a->ready; at < a->tied; at++)
            a->freed_new += a->freed[at & (a->freed_size - 1)].count;
        a->tied = a->ready;
        return;
    }
    a->ready = a->tied;
    if (a->ready > a->head && !a->releasing) {
        a->releasing = true;
        keeper_submit(a->reaper, &a->release);
    }
}
