// SPDX-License-Identifier: Apache-2.0
/*
 * Writing. Into clusters that are this image's own: in place, without a lock. All else is an allocation: planned under
 * the layer's lock (which clusters, where to, what old content must come along), carried out without it (cow.c), and
 * linked under it again once the data is written. Until then the clusters stand in the list of allocations in flight,
 * and whoever wants to change their entries waits. Nothing of a failed write is linked.
 */
#include <errno.h>
#include <stddef.h>

#include "backends/format/qcow2/commit.h"
#include "backends/format/qcow2/data.h"
#include "backends/format/qcow2/guard.h"
#include "common/checked.h"

enum write_kind {
    WRITE_PLACE, /* own cluster, all subclusters there */
    WRITE_SUBS,  /* own cluster; subclusters of it become data (also: a zero-flagged cluster that keeps its place) */
    WRITE_NEW,   /* no cluster yet, or one that holds nothing we need */
    WRITE_COPY,  /* a compressed or shared cluster: the whole of it moves */
};

/* ---- helpers on allocations and entries ---------------------------------------------------------------------- */

struct allocation *allocation_overlap(struct qcow2 *q, uint64_t first, uint64_t count)
{
    struct allocation *found = NULL;
    for (struct allocation *a = q->data->allocations; a; a = a->next)
        if (ranges_overlap(a->first, a->count, first, count) && (!found || a->first < found->first))
            found = a;
    return found;
}

static void allocation_add(struct qcow2 *q, struct allocation *allocation)
{
    allocation->next = q->data->allocations;
    allocation->link = &q->data->allocations;
    if (allocation->next)
        allocation->next->link = &allocation->next;
    q->data->allocations = allocation;
    allocation->waiters = NULL;
}

static void allocation_remove(struct qcow2 *q, struct allocation *allocation)
{
    *allocation->link = allocation->next;
    if (allocation->next)
        allocation->next->link = allocation->link;
    waiters_wake(&allocation->waiters, 0);
    if (--allocation->slice->pins == 0)
        waiters_wake(&q->data->victim_waiters, 0);
}

void entry_free(struct qcow2 *q, const struct entry *entry)
{
    if (!entry->host)
        return;
    /* A compressed cluster counts one reference in each host cluster that it touches. */
    uint64_t first = align_down(entry->host, q->cluster_size), count = 1;
    if (entry->compressed)
        count = (align_down(entry->host + entry->compressed - 1, q->cluster_size) - first) / q->cluster_size + 1;
    allocator_free(q->allocator, first, count);
}

/* ---- planning -------------------------------------------------------------------------------------------------- */

static enum write_kind write_kind(const struct entry *entry, uint32_t touched)
{
    if (entry->compressed || (entry->data && !entry->copied))
        return WRITE_COPY;
    if (!entry->host || !entry->copied)
        return WRITE_NEW;
    return (entry->data & touched) == touched ? WRITE_PLACE : WRITE_SUBS;
}

/* What of guest bytes [offset, end) lies in cluster number `cluster`, as subcluster bits. */
static uint32_t touched_in(const struct qcow2 *q, uint64_t cluster, uint64_t offset, uint64_t end)
{
    uint64_t from = MAX(offset, cluster << q->cluster_bits), to = MIN(end, (cluster + 1) << q->cluster_bits);
    return sub_range(q, from, to - from);
}

/* Does the entry show older content that is not zeros in `touched`? */
static bool shows_content(const struct qcow2 *q, const struct entry *entry, uint32_t touched, uint64_t cluster)
{
    return (touched & ~(entry->data | entry->zero)) && !below_empty(q, cluster << q->cluster_bits);
}

/* How the rest of an edge subcluster gets its old content. */
static enum edge_kind edge_kind(const struct qcow2 *q, const struct entry *entry, enum write_kind kind, uint64_t offset)
{
    uint32_t sub = sub_range(q, offset, 1);
    if (kind == WRITE_COPY)
        return EDGE_READ;
    if (entry->data & sub)
        return EDGE_NONE;
    if (!(entry->zero & sub) && !below_empty(q, align_down(offset, q->subcluster_size)))
        return EDGE_READ;
    /* A new cluster is zeros on the disk already; an old one may hold anything. */
    return kind == WRITE_NEW ? EDGE_NONE : EDGE_ZERO;
}

/* The edges of the plan for guest bytes [offset, end). */
static void plan_edges(struct chunk *chunk, const struct entry *first, const struct entry *last, uint64_t offset,
                       uint64_t end)
{
    const struct qcow2 *q = chunk->queue->q;
    enum write_kind kind = chunk->allocation.kind;
    uint64_t grain = kind == WRITE_COPY ? q->cluster_size : q->subcluster_size;
    chunk->edge[0] = offset - align_down(offset, grain);
    chunk->edge[1] = align_up(end, grain) - end;
    chunk->edge_kind[0] = chunk->edge[0] ? edge_kind(q, first, kind, offset) : EDGE_NONE;
    chunk->edge_kind[1] = chunk->edge[1] ? edge_kind(q, last, kind, end - 1) : EDGE_NONE;
    for (unsigned i = 0; i < 2; i++)
        if (chunk->edge_kind[i] == EDGE_NONE)
            chunk->edge[i] = 0;
}

/* How many clusters from the chunk's first can go in one allocation of its kind: looks at entries and neighbours. */
static uint64_t plan_run(struct chunk *chunk, struct slice *slice, uint64_t offset, uint64_t end)
{
    struct qcow2 *q = chunk->queue->q;
    struct allocation *plan = &chunk->allocation;
    if (plan->kind == WRITE_SUBS)
        return 1;
    uint64_t last = (end - 1) >> q->cluster_bits;
    uint32_t index = slice_index_of(q, offset);
    uint64_t count = MIN(last - plan->first + 1, q->data->slice_entries - index);
    struct allocation *busy = allocation_overlap(q, plan->first, count);
    if (busy)
        count = busy->first - plan->first;
    for (uint64_t i = 1; i < count; i++) {
        struct entry entry;
        uint32_t touched = touched_in(q, plan->first + i, offset, end);
        if (entry_load(q, slice, index + (uint32_t)i, &entry) < 0 || write_kind(&entry, touched) != plan->kind)
            return i;
    }
    return count;
}

/* Take the clusters and fill in the allocation: 0, CHUNK_PARKED or -errno. */
static int plan_take(struct chunk *chunk, struct slice *slice, const struct entry *first, uint64_t count)
{
    struct qcow2 *q = chunk->queue->q;
    struct allocation *plan = &chunk->allocation;
    plan->taken = plan->kind != WRITE_SUBS;
    plan->host = first->host;
    plan->count = count;
    if (plan->taken) {
        int r = allocator_take(q->allocator, count, &plan->host, &plan->count, &chunk->alloc);
        if (r < 0)
            return r == -EAGAIN ? CHUNK_PARKED : r;
        data_took(q, plan->host, plan->count << q->cluster_bits);
    } else {
        int r = guard_data(q, plan->host, q->cluster_size);
        if (r < 0)
            return r;
    }
    plan->slice = slice;
    slice->pins++;
    allocation_add(q, plan);
    return 0;
}

/* Locked. Plan an allocation for guest bytes [offset, offset + length) or a first part of it, which goes to
 * *ret_length: 0, CHUNK_PARKED, -EAGAIN (can be written in place by now) or -errno. */
static int plan_locked(struct chunk *chunk, uint64_t offset, uint64_t length, uint64_t *ret_length)
{
    struct qcow2 *q = chunk->queue->q;
    struct allocation *plan = &chunk->allocation;
    uint64_t end = offset + length;
    plan->first = offset >> q->cluster_bits;
    struct allocation *busy = allocation_overlap(q, plan->first, 1);
    if (busy)
        return chunk_park(chunk, &busy->waiters);
    struct slice *slice;
    int r = table_slice(chunk, offset, true, &slice);
    if (r)
        return r;
    struct entry first, last;
    uint32_t index = slice_index_of(q, offset);
    r = entry_load(q, slice, index, &first);
    if (r < 0)
        return r;
    plan->kind = write_kind(&first, touched_in(q, plan->first, offset, end));
    if (plan->kind == WRITE_PLACE)
        return -EAGAIN;
    r = plan_take(chunk, slice, &first, plan_run(chunk, slice, offset, end));
    if (r)
        return r;
    end = MIN(end, (plan->first + plan->count) << q->cluster_bits);
    plan->barrier = plan->kind != WRITE_NEW;
    last = first;
    for (uint64_t i = 0; i < plan->count; i++) {
        (void)entry_load(q, slice, index + (uint32_t)i, &last);
        plan->barrier |= shows_content(q, &last, touched_in(q, plan->first + i, offset, end), plan->first + i);
    }
    plan_edges(chunk, &first, &last, offset, end);
    *ret_length = end - offset;
    return 0;
}

/* ---- linking --------------------------------------------------------------------------------------------------- */

static void link_entries(struct chunk *chunk)
{
    struct qcow2 *q = chunk->queue->q;
    const struct allocation *plan = &chunk->allocation;
    uint64_t offset = chunk->request->offset + chunk->skip, end = offset + chunk->length;
    uint32_t index = slice_index_of(q, plan->first << q->cluster_bits);
    for (uint64_t i = 0; i < plan->count; i++) {
        struct entry old = {0};
        /* Valid when planned, and nobody may change it since. */
        (void)entry_load(q, plan->slice, index + (uint32_t)i, &old);
        uint32_t touched = touched_in(q, plan->first + i, offset, end);
        struct entry new = {.host = plan->host + (i << q->cluster_bits), .copied = true};
        if (plan->kind == WRITE_COPY) {
            new.data = q->data->sub_mask;
        } else {
            new.data = (plan->kind == WRITE_SUBS ? old.data : 0) | touched;
            new.zero = old.zero & ~touched;
        }
        entry_store(q, plan->slice, index + (uint32_t)i, &new);
        if (plan->taken)
            entry_free(q, &old);
    }
    if (plan->barrier)
        commit_need_barrier(q);
}

void write_finish(struct chunk *chunk, int result)
{
    struct data_queue *queue = chunk->queue;
    struct qcow2 *q = queue->q;
    struct allocation *plan = &chunk->allocation;
    (void)pthread_mutex_lock(&q->lock);
    if (result == 0)
        link_entries(chunk);
    else if (plan->taken)
        allocator_free(q->allocator, plan->host, plan->count);
    allocation_remove(q, plan);
    (void)pthread_mutex_unlock(&q->lock);
    data_dirtied(queue);
    chunk_done(chunk, result);
}

/* ---- the step -------------------------------------------------------------------------------------------------- */

static bool write_allocate(struct chunk *chunk, uint64_t offset, uint64_t length)
{
    struct qcow2 *q = chunk->queue->q;
    /* No more than fits the chunk's vector, or clusters would be taken in vain. */
    length = chunk_map_iov(chunk, length);
    (void)pthread_mutex_lock(&q->lock);
    int r = plan_locked(chunk, offset, length, &length);
    (void)pthread_mutex_unlock(&q->lock);
    if (r == CHUNK_PARKED)
        return false;
    if (r == -EAGAIN)
        return write_part(chunk, length);
    if (r < 0)
        return chunk_fail(chunk, r);
    chunk_begin(chunk, length);
    cow_start(chunk);
    return true;
}

bool write_part(struct chunk *chunk, uint64_t length)
{
    struct qcow2 *q = chunk->queue->q;
    uint64_t offset = chunk->request->offset + chunk->skip;
    struct mapping mapping;
    int r = map_lookup(q, offset, length, MAP_COPIED, &mapping);
    if (r < 0 && r != -EAGAIN)
        return chunk_fail(chunk, r);
    if (r < 0 || mapping.kind != MAP_DATA || !mapping.copied)
        return write_allocate(chunk, offset, length);
    r = guard_data(q, mapping.host, mapping.length);
    if (r < 0)
        return chunk_fail(chunk, r);
    return chunk_transfer(chunk, IO_WRITE, mapping.host, mapping.length);
}

bool write_step(struct chunk *chunk)
{
    return write_part(chunk, chunk->request->length - chunk->skip);
}
