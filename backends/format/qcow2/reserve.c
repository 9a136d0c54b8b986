// SPDX-License-Identifier: Apache-2.0
/*
 * Reserving runs of clusters, on the keeper: find them, make them zero and real, count them, one flush, then hand them
 * to the loops.
 *
 * Lowest first, so that the file does not grow while it has holes; space without refcount blocks gets them on the way
 * (refcounts_extend). Nothing is published before it is durable, and what fails halfway is uncounted again, so that a
 * later try starts from the same place.
 */
#include "backends/format/qcow2/reserve.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "backends/format/qcow2/refcount.h"
#include "common/checked.h"
#include "common/cleanup.h"

struct batch {
    struct extent extents[REFILL_EXTENTS];
    bool counted[REFILL_EXTENTS]; /* by refcounts_extend */
    size_t count, max;
    uint64_t clusters;
    uint64_t cursor;
};

static void batch_add(struct batch *batch, uint64_t cluster, uint64_t count, bool counted)
{
    batch->extents[batch->count] = (struct extent){.cluster = cluster, .count = count};
    batch->counted[batch->count] = counted;
    batch->count++;
    batch->clusters += count;
}

/* ---- finding ------------------------------------------------------------------------------------------------- */

/* Space without blocks from `start` on: the part of it that no table lies in although it has no counts. */
static int extend(struct allocator *a, uint64_t start, uint64_t span, uint64_t want, struct batch *batch)
{
    uint64_t size = 0;
    uint64_t cluster = 0;
    uint64_t count = 0;
    bool hit = false;
    int r = refcounts_extend_size(a->q->refcounts, start, span, want, &size);
    if (r < 0)
        return r;
    struct extent area = {.cluster = start, .count = size};
    if (guard_check(a->q, &area, 1, &hit) > 0) {
        a->refused++;
        batch->cursor = start + size;
        return 0;
    }
    r = refcounts_extend(a->q->refcounts, start, span, want, &cluster, &count);
    if (r < 0) {
        a->fresh_from = MAX(a->fresh_from, start + size); /* tables may have been written there */
        return r;
    }
    batch_add(batch, cluster, count, true);
    batch->cursor = cluster + count;
    return 0;
}

/* Fill `batch` with free clusters from the cursor on. Short of `want` only when extents run out or -ENOSPC. */
static int collect(struct allocator *a, uint64_t want, struct batch *batch)
{
    batch->cursor = a->cursor;
    while (batch->clusters < want && batch->count < batch->max) {
        uint64_t cluster = 0;
        uint64_t count = 0;
        uint64_t left = want - batch->clusters;
        bool missing = false;
        int r = refcounts_find_free(a->q->refcounts, batch->cursor, left, &cluster, &count, &missing);
        if (r == 0 && missing)
            r = extend(a, cluster, count, left, batch);
        if (r < 0)
            return r == -ENOSPC && batch->count > 0 ? 0 : r;
        if (missing)
            continue;
        batch->cursor = cluster + count;
        struct extent found = {.cluster = cluster, .count = count};
        bool hit = false;
        if (guard_check(a->q, &found, 1, &hit) > 0)
            a->refused++;
        else
            batch_add(batch, cluster, count, false);
    }
    return 0;
}

/* ---- making them zero and real ------------------------------------------------------------------------------- */

/* Clusters below fresh_from may hold something old even if their count was 0 all the time. */
static int make_zero(struct allocator *a, const struct extent *extent)
{
    struct io_file *file = a->q->base.file;
    if (extent->cluster >= a->fresh_from)
        return 0;
    uint64_t offset = extent->cluster << a->q->cluster_bits;
    uint64_t length = MIN(extent->count, a->fresh_from - extent->cluster) << a->q->cluster_bits;
    int r = io_file_discard(file, offset, length);
    if (r == -EOPNOTSUPP || (r == -EINVAL && file->block_device)) /* a device with larger blocks than our clusters */
        return io_file_zero(file, offset, length);
    /* Allocated again at once: a write into a hole could run out of space when it is too late to say so. */
    return r < 0 ? r : io_file_allocate(file, offset, length);
}

/* Tables are written long after what they say was acknowledged. Clusters have their place in the file before they are
 * handed out; L1 may have been made as a hole, by other tools. */
static int place_l1(struct allocator *a)
{
    const struct qcow2 *q = a->q;
    uint64_t bytes = align_up((uint64_t)q->header.l1_size * 8, q->cluster_size);
    if (a->l1_placed || q->base.file->block_device || !bytes)
        return 0;
    int r = io_file_allocate(q->base.file, q->l1_offset, bytes);
    a->l1_placed = r == 0;
    return r == -EDQUOT ? -ENOSPC : r;
}

static int prepare(struct allocator *a, const struct batch *batch)
{
    int placed = place_l1(a);
    if (placed < 0)
        return placed;
    for (size_t i = 0; i < batch->count; i++) {
        const struct extent *extent = &batch->extents[i];
        int r = refcounts_ensure_length(a->q->refcounts, (extent->cluster + extent->count) << a->q->cluster_bits);
        if (r == 0)
            r = make_zero(a, extent);
        if (r < 0)
            return r;
    }
    return 0;
}

static int count_up(struct allocator *a, struct batch *batch)
{
    for (size_t i = 0; i < batch->count; i++) {
        uint64_t changed = 0;
        struct extent *extent = &batch->extents[i];
        if (batch->counted[i])
            continue;
        int r = refcounts_adjust(a->q->refcounts, extent->cluster, extent->count, 1, &changed);
        if (r < 0) {
            (void)refcounts_adjust(a->q->refcounts, extent->cluster, changed, -1, NULL);
            return r;
        }
        batch->counted[i] = true;
    }
    return 0;
}

static void undo(struct allocator *a, const struct batch *batch)
{
    for (size_t i = 0; i < batch->count; i++) {
        const struct extent *extent = &batch->extents[i];
        a->fresh_from = MAX(a->fresh_from, extent->cluster + extent->count);
        /* An error leaves the rest counted in memory too: leaked, never handed out twice. */
        if (batch->counted[i])
            (void)refcounts_adjust(a->q->refcounts, extent->cluster, extent->count, -1, NULL);
    }
}

/* ---- reserving ----------------------------------------------------------------------------------------------- */

static int finish(struct allocator *a, struct batch *batch)
{
    int r = prepare(a, batch);
    if (r == 0)
        r = count_up(a, batch);
    if (r == 0)
        r = refcounts_sync(a->q->refcounts);
    if (r < 0) {
        undo(a, batch);
        return r;
    }
    for (size_t i = 0; i < batch->count; i++)
        a->fresh_from = MAX(a->fresh_from, batch->extents[i].cluster + batch->extents[i].count);
    return 0;
}

int reserve_extents(struct allocator *a, uint64_t want, struct extent *ret_extents, size_t max, size_t *ret_count)
{
    int r = -ENOSPC;
    for (uint64_t size = want; size > 0 && r == -ENOSPC; size /= 2) {
        struct batch batch = {.max = MIN(max, REFILL_EXTENTS)};
        r = collect(a, size, &batch);
        if (r == 0)
            r = finish(a, &batch);
        else
            undo(a, &batch);
        if (r == 0) {
            a->cursor = MIN(batch.cursor, a->q->refcounts->lowest_freed);
            a->q->refcounts->lowest_freed = UINT64_MAX;
            memcpy(ret_extents, batch.extents, batch.count * sizeof(*ret_extents));
            *ret_count = batch.count;
        }
    }
    return r;
}

/* ---- the refill job ------------------------------------------------------------------------------------------ */

static void wake_waiters(struct allocator *a, int failed)
{
    struct alloc_waiter *waiter = a->waiters;
    a->waiters = NULL;
    a->waiters_last = &a->waiters;
    while (waiter) {
        struct alloc_waiter *next = waiter->next; /* gone once posted */
        waiter->failed = failed;
        io_loop_post(waiter->loop, &waiter->task);
        waiter = next;
    }
}

int reserve_refill(struct keeper_job *job)
{
    struct allocator *a = (struct allocator *)((char *)job - offsetof(struct allocator, refill));
    struct extent extents[REFILL_EXTENTS] = {0};
    size_t count = 0;
    int r = image_failed(a->q->base.image);
    if (r == 0) {
        LOCK_SCOPE(&a->work);
        do
            r = reserve_extents(a, a->run, extents, REFILL_EXTENTS, &count);
        while (r == -ENOSPC && release_graced(a));
    }
    {
        LOCK_SCOPE(&a->lock);
        for (size_t i = 0; r == 0 && i < count; i++) {
            a->reserved[(a->reserved_first + a->reserved_count) % RESERVED_MAX] = extents[i];
            a->reserved_count++;
            a->reserved_clusters += extents[i].count;
        }
        a->refilling = false;
        wake_waiters(a, r);
    }
    if (r == -ENOSPC && allocator_has_freed(a))
        qcow2_commit_soon(a->q);
    return r;
}

/* ---- taking for tables --------------------------------------------------------------------------------------- */

/* The first `count` free clusters in a row; blocks are added behind the last one if it comes to that. */
static int find_contiguous(struct allocator *a, uint64_t count, struct batch *batch)
{
    uint64_t start = a->cursor;
    uint64_t length = 0;
    while (length < count) {
        uint64_t cluster = 0;
        uint64_t found = 0;
        bool missing = false;
        int r = refcounts_find_free(a->q->refcounts, start + length, count - length, &cluster, &found, &missing);
        if (r < 0)
            return r;
        if (missing) {
            uint64_t size = 0;
            /* With room for all of it or not at all. */
            r = refcounts_extend_size(a->q->refcounts, cluster, UINT64_MAX, count, &size);
            if (r < 0)
                return r;
            if (size > found) {
                start = cluster + found;
                length = 0;
                continue;
            }
            batch->cursor = a->cursor;
            r = extend(a, cluster, found, count, batch);
            if (r < 0 || batch->count > 0)
                return r;
            start = batch->cursor;
            length = 0;
            continue;
        }
        struct extent extent = {.cluster = cluster, .count = found};
        bool hit = false;
        if (guard_check(a->q, &extent, 1, &hit) > 0) {
            start = cluster + found;
            length = 0;
            continue;
        }
        if (cluster != start + length) {
            start = cluster;
            length = 0;
        }
        length += found;
    }
    batch_add(batch, start, count, false);
    return 0;
}

int allocator_take_blocking(struct allocator *a, uint64_t count, uint64_t *ret_offset, struct error *err)
{
    LOCK_SCOPE(&a->work);
    int r = image_failed(a->q->base.image);
    if (r < 0)
        return error_sys(err, r, "the image failed before");
    struct batch batch = {.max = 1};
    r = find_contiguous(a, count, &batch);
    if (r == 0)
        r = finish(a, &batch);
    else
        undo(a, &batch);
    if (r < 0)
        return error_sys(err, r, "take %llu clusters for a table", (unsigned long long)count);
    *ret_offset = batch.extents[0].cluster << a->q->cluster_bits;
    return 0;
}
