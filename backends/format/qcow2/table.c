// SPDX-License-Identifier: Apache-2.0
/*
 * L2 tables: bringing their slices into the cache (one load for all who wait), making new ones, and giving the image its
 * own copy of a table that an internal snapshot shares. Everything under the layer's lock but the I/O.
 */
#include <endian.h>
#include <errno.h>
#include <stddef.h>

#include "backends/format/qcow2/commit.h"
#include "backends/format/qcow2/data.h"
#include "backends/format/qcow2/guard.h"
#include "common/checked.h"
#include "common/cleanup.h"

/* Bits 0-8 and 56-62 of an L1 entry. */
#define L1_RESERVED UINT64_C(0x7f000000000001ff)
#define LOAD_TRIES 4u

static bool table_valid(const struct qcow2 *q, uint64_t word)
{
    uint64_t host = word & QCOW2_OFFSET_MASK;
    return !(word & L1_RESERVED) && host && is_aligned(host, q->cluster_size) &&
           range_within(host, q->cluster_size, atomic_load_explicit(&q->data->file_end, memory_order_acquire));
}

static void set_l1(struct qcow2 *q, uint32_t index, uint64_t host)
{
    atomic_store_explicit(&q->l1[index], htobe64(host | QCOW2_COPIED), memory_order_release);
    commit_l1_dirty(q, index);
}

/* Every slice is dirty, loading or pinned: some become clean when written, the others end by themselves. */
static int victim_wait(struct chunk *chunk)
{
    struct qcow2 *q = chunk->queue->q;
    int failed = image_failed(q->base.image);
    if (failed && q->commit && !q->frozen) /* nothing will be written any more */
        return failed;
    if (q->commit)
        commit_want(q);
    return chunk_park(chunk, &q->data->victim_waiters);
}

/* ---- loading ------------------------------------------------------------------------------------------------- */

/* A layer that is only read may be written to by a commit meanwhile (blk_worker_commit). Then entries name clusters beyond the
 * end that the file had when it was opened; and an extended entry, which is two words, may have come half old, half
 * new: with data, but no place. Such a slice is worth another try. */
static bool slice_torn(struct chunk *chunk)
{
    struct qcow2 *q = chunk->queue->q;
    const uint64_t *words = chunk->page;
    uint64_t end = atomic_load_explicit(&q->data->file_end, memory_order_relaxed), length = 0;
    bool beyond = false, torn = false;
    for (size_t i = 0; i < q->slices->size / sizeof(uint64_t); i += q->entry_size / sizeof(uint64_t)) {
        uint64_t word = be64toh(words[i]), host = word & QCOW2_OFFSET_MASK;
        if (word & QCOW2_COMPRESSED)
            continue;
        beyond |= host >= end;
        torn |= q->data->sub_bits && !host && (uint32_t)be64toh(words[i + 1]);
    }
    if (beyond && io_file_length(q->base.file, &length) == 0) {
        LOCK_SCOPE(&q->lock);
        data_took(q, 0, align_up(length, q->cluster_size));
    }
    return torn;
}

static void load_done(struct io_op *op, int result)
{
    struct chunk *chunk = (struct chunk *)((char *)op - offsetof(struct chunk, op));
    struct qcow2 *q = chunk->queue->q;
    struct slice *slice = chunk->loading;
    if (result == 0 && q->base.read_only && slice_torn(chunk) && ++chunk->loads < LOAD_TRIES) {
        io_submit(chunk->queue->loop, op);
        return;
    }
    if (result == 0)
        guard_entries(q, chunk->page, q->slices->size);
    (void)pthread_mutex_lock(&q->lock);
    struct waiter *waiters = slice->waiters;
    slice->waiters = NULL;
    if (result < 0)
        slice_abandon(q->slices, slice);
    else
        slice_fill(q->slices, slice, chunk->page);
    /* The loader goes on as one of those who wait: woken with the same result. */
    (void)chunk_park(chunk, &waiters);
    waiters_wake(&waiters, result);
    waiters_wake(&q->data->victim_waiters, 0);
    (void)pthread_mutex_unlock(&q->lock);
}

static int load_start(struct chunk *chunk, uint64_t offset, uint64_t table)
{
    struct qcow2 *q = chunk->queue->q;
    uint64_t key = slice_key_of(q, offset);
    struct slice *slice = slice_claim(q->slices, key);
    if (!slice)
        return victim_wait(chunk);
    uint64_t in_table = key & ((UINT64_C(1) << q->data->slices_table_bits) - 1);
    chunk->loading = slice;
    chunk->loads = 0;
    chunk->iov[0] = (struct iovec){.iov_base = chunk->page, .iov_len = q->slices->size};
    chunk->op.kind = IO_READ;
    chunk->op.iov = chunk->iov;
    chunk->op.iovcnt = 1;
    chunk->op.offset = table + in_table * q->slices->size;
    chunk->op.length = q->slices->size;
    chunk->op.done = load_done;
    io_submit(chunk->queue->loop, &chunk->op);
    return CHUNK_PARKED;
}

/* ---- own tables ---------------------------------------------------------------------------------------------- */

/* Does another entry of the L1 table name it? */
static bool table_named(const struct qcow2 *q, uint64_t host)
{
    for (uint32_t i = 0; i < q->l1_entries; i++)
        if ((be64toh(atomic_load_explicit(&q->l1[i], memory_order_relaxed)) & QCOW2_OFFSET_MASK) == host)
            return true;
    return false;
}

static int copy_run(struct keeper_job *job)
{
    struct table_copy *copy = (struct table_copy *)((char *)job - offsetof(struct table_copy, job));
    struct qcow2 *q = copy->q;
    uint64_t old = be64toh(atomic_load_explicit(&q->l1[copy->l1_index], memory_order_acquire)) & QCOW2_OFFSET_MASK;
    uint64_t host;
    int r = guard_reserve(q, q->l1_entries, 1);
    if (r == 0)
        r = allocator_take_blocking(q->allocator, 1, &host, NULL);
    if (r < 0)
        return r;
    r = io_file_read(q->base.file, copy->buffer, q->cluster_size, old);
    if (r == 0)
        r = io_file_write(q->base.file, copy->buffer, q->cluster_size, host);
    LOCK_SCOPE(&q->lock);
    if (r < 0) {
        allocator_free(q->allocator, host, 1);
        return r;
    }
    data_took(q, host, q->cluster_size);
    guard_add(q, GUARD_L2, host, q->cluster_size);
    set_l1(q, copy->l1_index, host);
    if (!table_named(q, old))
        guard_remove(q, old, q->cluster_size);
    commit_need_barrier(q);
    allocator_free(q->allocator, old, 1);
    return 0;
}

static void copy_done(struct keeper_job *job, int result)
{
    struct table_copy *copy = (struct table_copy *)((char *)job - offsetof(struct table_copy, job));
    struct qcow2 *q = copy->q;
    (void)pthread_mutex_lock(&q->lock);
    copy->running = false;
    waiters_wake(&copy->waiters, result);
    (void)pthread_mutex_unlock(&q->lock);
}

/* One copy at a time: whoever wants another table waits for this one and asks again. */
static int copy_start(struct chunk *chunk, uint32_t l1_index)
{
    struct table_copy *copy = &chunk->queue->q->data->copy;
    (void)chunk_park(chunk, &copy->waiters);
    if (!copy->running) {
        copy->running = true;
        copy->l1_index = l1_index;
        copy->job = (struct keeper_job){.run = copy_run, .done = copy_done, .loop = chunk->queue->loop};
        keeper_submit(chunk->queue->q->keeper, &copy->job);
    }
    return CHUNK_PARKED;
}

/* A reserved cluster is zeros on the disk: as a table it is complete before anything is written to it. */
static int table_new(struct chunk *chunk, uint64_t offset, uint32_t l1_index, struct slice **ret_slice)
{
    struct qcow2 *q = chunk->queue->q;
    struct slice *slice = slice_claim(q->slices, slice_key_of(q, offset));
    if (!slice)
        return victim_wait(chunk);
    uint64_t host, count;
    int r = allocator_take(q->allocator, 1, &host, &count, &chunk->alloc);
    if (r < 0) {
        slice_abandon(q->slices, slice);
        waiters_wake(&q->data->victim_waiters, 0);
        return r == -EAGAIN ? CHUNK_PARKED : r;
    }
    data_took(q, host, q->cluster_size);
    guard_add(q, GUARD_L2, host, q->cluster_size);
    slice_fill(q->slices, slice, NULL);
    set_l1(q, l1_index, host);
    *ret_slice = slice;
    return 0;
}

int table_slice(struct chunk *chunk, uint64_t offset, bool write, struct slice **ret_slice)
{
    struct qcow2 *q = chunk->queue->q;
    uint64_t l1_index = offset >> (q->cluster_bits + q->l2_bits);
    if (l1_index >= q->l1_entries)
        return -EIO;
    uint64_t word = be64toh(atomic_load_explicit(&q->l1[l1_index], memory_order_relaxed));
    if (!word)
        return write ? table_new(chunk, offset, (uint32_t)l1_index, ret_slice) : -ENOENT;
    if (!table_valid(q, word))
        return -EIO;
    if (write && !(word & QCOW2_COPIED))
        return copy_start(chunk, (uint32_t)l1_index);
    struct slice *slice = slice_get(q->slices, slice_key_of(q, offset));
    if (!slice)
        return load_start(chunk, offset, word & QCOW2_OFFSET_MASK);
    if (slice->state == SLICE_LOADING)
        return chunk_park(chunk, &slice->waiters);
    *ret_slice = slice;
    return 0;
}
