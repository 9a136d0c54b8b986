// SPDX-License-Identifier: Apache-2.0
/*
 * Write zeroes and discard: whole clusters (or subclusters) by changing table entries, slice by slice, so that a huge
 * range neither holds the lock for long nor keeps the loop from others. What is left at the edges is written as zeros, or
 * left alone by a discard. A discard never uncovers the layer below.
 */
#include <errno.h>

#include "backends/format/qcow2/commit.h"
#include "backends/format/qcow2/data.h"
#include "common/checked.h"
#include "common/cleanup.h"

#define SLICES_A_TURN 16u

/* One entry with `subs` of it zeroed; false when it stays. */
static bool zero_entry(const struct qcow2 *q, const struct image_request *request, const struct entry *old,
                       uint32_t subs, uint64_t cluster, struct entry *ret_new)
{
    bool discard = request->op == IMAGE_DISCARD;
    bool unmap = discard || (request->flags & IMAGE_MAY_UNMAP) || q->header.version < 3;
    struct entry new = *old;
    if (old->compressed) {
        if (subs != q->data->sub_mask)
            return false;
        new = (struct entry){.zero = subs};
    } else {
        uint32_t changed = discard ? subs & old->data : subs;
        new.data &= ~changed;
        new.zero |= changed;
        if (!new.data && (unmap || !new.copied) && (changed || subs == q->data->sub_mask))
            new.host = 0;
    }
    if (!new.host) {
        new.copied = false;
        if (below_empty(q, cluster << q->cluster_bits))
            new.zero = 0;
    }
    *ret_new = new;
    return new.host != old->host || new.data != old->data || new.zero != old->zero;
}

/* Locked: entries of one slice for guest bytes [offset, end). Returns the bytes done; 0 when the first cluster is
 * compressed and only a part of it is to be zeroed. */
static int64_t zero_slice(struct chunk *chunk, struct slice *slice, uint64_t offset, uint64_t end)
{
    struct qcow2 *q = chunk->queue->q;
    const struct image_request *request = chunk->request;
    uint32_t index = slice_index_of(q, offset);
    uint64_t at = offset;
    /* The last cluster counts as whole although the image may end within it. */
    uint64_t reach = end == q->base.size ? align_up(end, q->cluster_size) : end;
    for (; at < end; index++) {
        uint64_t cluster = at >> q->cluster_bits, next = MIN(reach, (cluster + 1) << q->cluster_bits);
        uint32_t subs = sub_range(q, at, next - at);
        struct entry old, new;
        int r = entry_load(q, slice, index, &old);
        if (r < 0)
            return at > offset ? (int64_t)(at - offset) : r;
        if (old.compressed && subs != q->data->sub_mask && request->op == IMAGE_WRITE_ZEROES)
            break;
        if (zero_entry(q, request, &old, subs, cluster, &new)) {
            entry_store(q, slice, index, &new);
            if (old.host && !new.host)
                entry_free(q, &old);
        }
        at = MIN(next, end);
    }
    return (int64_t)(at - offset);
}

/* Locked: where the L1 entry is 0 and what it stands for reads as zeros anyway (or may stay), nothing is to be done. */
static bool nothing_there(const struct chunk *chunk, uint64_t offset)
{
    const struct qcow2 *q = chunk->queue->q;
    uint64_t l1_index = offset >> (q->cluster_bits + q->l2_bits);
    return l1_index < q->l1_entries && !atomic_load_explicit(&q->l1[l1_index], memory_order_relaxed) &&
           (chunk->request->op == IMAGE_DISCARD || below_empty(q, offset));
}

/* One slice, or one absent table: bytes done (0: write the rest of the cluster as data), -EINPROGRESS when parked, or
 * -errno. */
static int64_t zero_some(struct chunk *chunk, uint64_t offset, uint64_t end)
{
    struct qcow2 *q = chunk->queue->q;
    LOCK_SCOPE(&q->lock);
    if (nothing_there(chunk, offset)) {
        unsigned bits = q->cluster_bits + q->l2_bits;
        return (int64_t)(MIN(end, ((offset >> bits) + 1) << bits) - offset);
    }
    if (allocator_pressure(q->allocator)) {
        (void)commit_wait(chunk);
        return -EINPROGRESS;
    }
    uint64_t first = offset >> q->cluster_bits;
    uint64_t count =
        MIN(((end - 1) >> q->cluster_bits) - first + 1, q->data->slice_entries - slice_index_of(q, offset));
    struct allocation *busy = allocation_overlap(q, first, count);
    if (busy && busy->first <= first) {
        (void)chunk_park(chunk, &busy->waiters);
        return -EINPROGRESS;
    }
    if (busy)
        count = busy->first - first;
    struct slice *slice;
    int r = table_slice(chunk, offset, true, &slice);
    if (r)
        return r == CHUNK_PARKED ? -EINPROGRESS : r;
    return zero_slice(chunk, slice, offset, MIN(end, (first + count) << q->cluster_bits));
}

/* Guest bytes up to `end` from where the chunk is, whole subclusters. */
static bool zero_units(struct chunk *chunk, uint64_t end)
{
    struct data_queue *queue = chunk->queue;
    struct image_request *request = chunk->request;
    for (unsigned i = 0; i < SLICES_A_TURN; i++) {
        uint64_t offset = request->offset + chunk->skip;
        if (offset == end)
            return chunk_skip(chunk, 0);
        int64_t done = zero_some(chunk, offset, end);
        if (done == -EINPROGRESS)
            return false;
        if (done < 0)
            return chunk_fail(chunk, (int)done);
        if (done == 0)
            return write_part(chunk, MIN(end, align_up(offset + 1, queue->q->cluster_size)) - offset);
        chunk->skip += (uint64_t)done;
        request->position += (uint64_t)done;
        data_dirtied(queue);
    }
    chunk_yield(chunk);
    return false;
}

/* Less than a subcluster, or entries that cannot say zero. */
static bool zero_part(struct chunk *chunk, uint64_t length)
{
    struct qcow2 *q = chunk->queue->q;
    const struct image_request *request = chunk->request;
    uint64_t offset = request->offset + chunk->skip;
    if (request->op == IMAGE_DISCARD)
        return chunk_skip(chunk, length);
    struct mapping mapping;
    int r = map_wait(chunk, offset, length, 0, &mapping);
    if (r == CHUNK_PARKED)
        return false;
    if (r < 0)
        return chunk_fail(chunk, r);
    if (mapping.kind == MAP_ZERO || (mapping.kind == MAP_BELOW && below_empty(q, offset)))
        return chunk_skip(chunk, mapping.length);
    return write_part(chunk, length);
}

bool zero_step(struct chunk *chunk)
{
    const struct qcow2 *q = chunk->queue->q;
    const struct image_request *request = chunk->request;
    uint64_t unit = q->subcluster_size, size = q->base.size;
    uint64_t offset = request->offset + chunk->skip, end = request->offset + request->length;
    if (offset >= end)
        return chunk_skip(chunk, 0);
    if (!is_aligned(offset, unit))
        return zero_part(chunk, MIN(end, align_up(offset, unit)) - offset);
    uint64_t whole = end == size ? end : align_down(end, unit);
    if (whole <= offset)
        return zero_part(chunk, end - offset);
    if (q->header.version < 3 && !below_empty(q, offset))
        return zero_part(chunk, MIN(whole, align_up(q->base.below->size, unit)) - offset);
    return zero_units(chunk, whole);
}
