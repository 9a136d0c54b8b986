// SPDX-License-Identifier: Apache-2.0
/*
 * See commit.h. States of a round: barrier flush (when needed) -> writes -> next round, or the last flush -> end.
 * The blocking form is the same round with blocking calls; the two never run at once.
 */
#include "backends/format/qcow2/commit.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "backends/format/qcow2/data.h"
#include "backends/format/qcow2/guard.h"
#include "common/checked.h"
#include "common/cleanup.h"

#define COMMIT_SLOTS 256u /* tables in one round */
#define COMMIT_OPS 8u     /* writes in flight */
#define COMMIT_MERGE 32u  /* slots in one write */

/* One table block of a round. */
struct record {
    uint64_t offset;
    struct slice *slice; /* NULL: of L1 */
    uint32_t l1_block;
    uint32_t slot;
};

struct commit_op {
    struct io_op op;
    struct commit *commit;
    struct iovec iov[COMMIT_MERGE];
};

struct commit {
    struct qcow2 *q;
    uint32_t block; /* bytes of a slot: a slice, or as much of L1 */
    uint8_t *slots;

    /* Under the layer's lock. */
    bool running, wanted, need_barrier;
    struct waiter *waiters; /* for the next one */
    uint64_t *l1_dirty;     /* bitmap of blocks */
    uint32_t l1_blocks, l1_dirty_count;
    pthread_cond_t ended;
    bool soon_posted;
    struct data_queue *soon_queue;
    struct io_task soon_task;

    /* Of whoever runs it. */
    struct data_queue *queue; /* NULL: blocking. Changed under the lock */
    struct waiter *joined;    /* for this one */
    struct record records[COMMIT_SLOTS];
    uint32_t record_count, record_next;
    uint32_t slices_left, l1_left; /* of what was dirty when it began */
    bool barrier;
    int result;
    unsigned in_flight;
    struct commit_op ops[COMMIT_OPS];
    uint32_t free_ops; /* bitmap */
    struct io_op flush;
};

static void run_round(struct commit *c);

/* ---- life ------------------------------------------------------------------------------------------------------ */

static void soon_run(struct io_task *task);

int commit_create(struct qcow2 *q, struct commit **ret_commit, struct error *err)
{
    struct commit *c = calloc(1, sizeof(*c));
    if (!c)
        return error_sys(err, ENOMEM, "commit");
    c->q = q;
    c->block = q->slices->size;
    c->l1_blocks = QCOW2_L1_MAX_BYTES / c->block;
    c->l1_dirty = calloc(c->l1_blocks / 64, sizeof(uint64_t));
    c->slots = data_map((size_t)COMMIT_SLOTS * c->block, true);
    c->free_ops = (1u << COMMIT_OPS) - 1;
    c->soon_task.run = soon_run;
    (void)pthread_cond_init(&c->ended, NULL);
    for (unsigned i = 0; i < COMMIT_OPS; i++)
        c->ops[i].commit = c;
    if (!c->l1_dirty || !c->slots) {
        commit_destroy(c);
        return error_sys(err, ENOMEM, "commit");
    }
    *ret_commit = c;
    return 0;
}

struct commit *commit_destroy(struct commit *c)
{
    if (!c)
        return NULL;
    (void)pthread_cond_destroy(&c->ended);
    data_unmap(c->slots, (size_t)COMMIT_SLOTS * c->block);
    free(c->l1_dirty);
    free(c);
    return NULL;
}

void commit_retire(struct commit *c)
{
    data_unmap(c->slots, (size_t)COMMIT_SLOTS * c->block);
    c->slots = NULL;
}

/* ---- what waits (locked) --------------------------------------------------------------------------------------- */

void commit_need_barrier(struct qcow2 *q)
{
    q->commit->need_barrier = true;
}

static void mark_l1_block(struct commit *c, uint32_t block)
{
    if (c->l1_dirty[block / 64] >> (block % 64) & 1)
        return;
    c->l1_dirty[block / 64] |= UINT64_C(1) << (block % 64);
    c->l1_dirty_count++;
}

void commit_l1_dirty(struct qcow2 *q, uint32_t index)
{
    mark_l1_block(q->commit, (uint32_t)(((uint64_t)index * 8) / q->commit->block));
}

bool commit_pending(const struct qcow2 *q)
{
    return q->slices->dirty_count || q->commit->l1_dirty_count || allocator_has_freed(q->allocator);
}

bool commit_pressure(const struct qcow2 *q)
{
    return q->slices->dirty_count > MAX(q->slices->count / 2, 1) || allocator_pressure(q->allocator);
}

bool commit_running(const struct qcow2 *q)
{
    return q->commit->running;
}

void commit_want(struct qcow2 *q)
{
    if (!q->frozen && commit_pending(q))
        q->commit->wanted = true;
}

int commit_wait(struct chunk *chunk)
{
    return chunk_park(chunk, &chunk->queue->q->commit->waiters);
}

/* ---- collecting (locked) --------------------------------------------------------------------------------------- */

static uint64_t slice_place(const struct qcow2 *q, const struct slice *slice)
{
    uint64_t key = atomic_load_explicit(&slice->key, memory_order_relaxed);
    unsigned bits = q->data->slices_table_bits;
    uint64_t table = be64toh(atomic_load_explicit(&q->l1[key >> bits], memory_order_relaxed)) & QCOW2_OFFSET_MASK;
    return table + (key & ((UINT64_C(1) << bits) - 1)) * q->slices->size;
}

static void copy_l1_block(struct commit *c, uint32_t block, uint8_t *to)
{
    struct qcow2 *q = c->q;
    uint32_t words = c->block / 8, first = block * words;
    for (uint32_t i = 0; i < words; i++) {
        uint64_t word = first + i < q->l1_entries ? atomic_load_explicit(&q->l1[first + i], memory_order_relaxed) : 0;
        memcpy(to + (size_t)i * 8, &word, 8);
    }
}

static void collect_l1(struct commit *c)
{
    for (uint32_t i = 0; i < c->l1_blocks / 64 && c->l1_left && c->record_count < COMMIT_SLOTS; i++) {
        while (c->l1_dirty[i] && c->l1_left && c->record_count < COMMIT_SLOTS) {
            uint32_t block = i * 64 + (uint32_t)__builtin_ctzll(c->l1_dirty[i]);
            c->l1_dirty[i] &= c->l1_dirty[i] - 1;
            c->l1_dirty_count--;
            c->l1_left--;
            uint32_t slot = c->record_count++;
            copy_l1_block(c, block, c->slots + (size_t)slot * c->block);
            c->records[slot] = (struct record){
                .offset = c->q->l1_offset + (uint64_t)block * c->block, .l1_block = block, .slot = slot};
        }
    }
}

static void collect_slices(struct commit *c)
{
    struct qcow2 *q = c->q;
    while (c->slices_left && c->record_count < COMMIT_SLOTS) {
        uint32_t slot = c->record_count;
        struct slice *slice = slice_collect(q->slices, c->slots + (size_t)slot * c->block);
        if (!slice)
            break;
        c->slices_left--;
        c->record_count++;
        c->records[slot] = (struct record){.offset = slice_place(q, slice), .slice = slice, .slot = slot};
    }
}

static void collect(struct commit *c)
{
    c->record_count = c->record_next = 0;
    collect_l1(c);
    collect_slices(c);
    for (uint32_t i = 0; i < c->record_count && c->result == 0; i++)
        c->result = guard_table(c->q, c->records[i].slice ? GUARD_L2 : GUARD_L1, c->records[i].offset, c->block);
    /* What was linked up to now has its data written; the flush that comes before these copies makes it durable. */
    c->barrier = c->need_barrier && c->record_count;
    if (c->record_count)
        c->need_barrier = false;
}

static void begin(struct commit *c, struct data_queue *queue)
{
    struct qcow2 *q = c->q;
    c->running = true;
    c->wanted = false;
    c->queue = queue;
    c->joined = c->waiters;
    c->waiters = NULL;
    c->result = image_failed(q->base.image);
    /* The dirty list is oldest first: so many from its head are all that is dirty now. */
    c->slices_left = q->slices->dirty_count;
    c->l1_left = c->l1_dirty_count;
    allocator_commit_begin(q->allocator);
    collect(c);
}

/* Locked: the round's tables are on their way out of memory no more. After an error they stay dirty, so that memory,
 * which is right, is never replaced by what the disk holds. */
static void round_end(struct commit *c)
{
    for (uint32_t i = 0; i < c->record_count; i++) {
        struct slice *slice = c->records[i].slice;
        if (slice) {
            slice->writing = false;
            if (c->result < 0)
                slice_mark_dirty(c->q->slices, slice);
        } else if (c->result < 0) {
            mark_l1_block(c, c->records[i].l1_block);
        }
    }
    c->record_count = 0;
    waiters_wake(&c->q->data->victim_waiters, 0);
}

static int by_offset(const void *left, const void *right)
{
    const struct record *a = left, *b = right;
    return (a->offset > b->offset) - (a->offset < b->offset);
}

/* The next run of adjacent records as one write; returns bytes, 0 = none left. */
static uint64_t next_write(struct commit *c, struct iovec *iov, unsigned *ret_count, uint64_t *ret_offset)
{
    unsigned count = 0;
    while (c->record_next < c->record_count && count < COMMIT_MERGE) {
        const struct record *record = &c->records[c->record_next];
        if (count == 0)
            *ret_offset = record->offset;
        else if (record->offset != *ret_offset + (uint64_t)count * c->block)
            break;
        iov[count++] = (struct iovec){.iov_base = c->slots + (size_t)record->slot * c->block, .iov_len = c->block};
        c->record_next++;
    }
    *ret_count = count;
    return (uint64_t)count * c->block;
}

/* ---- on a loop ------------------------------------------------------------------------------------------------- */

/* Locked: the next one, where somebody waits for it. */
static void start_next(struct commit *c)
{
    struct data_queue *queue = c->waiters ? c->waiters->queue : NULL;
    if (queue && !c->soon_posted) {
        /* A waiter's queue stays until the waiter was served. */
        c->soon_posted = true;
        c->soon_queue = queue;
        io_loop_post(queue->loop, &c->soon_task);
    } else if (c->wanted) {
        commit_soon(c->q);
    }
}

/* `running` falls last: whoever destroys things waits for it. */
static void end(struct commit *c)
{
    struct qcow2 *q = c->q;
    int result = c->result;
    if (result < 0)
        image_fail(q->base.image, result);
    allocator_commit_end(q->allocator, result);
    LOCK_SCOPE(&q->lock);
    waiters_wake(&c->joined, result);
    c->queue = NULL;
    c->running = false;
    start_next(c);
    (void)pthread_cond_broadcast(&c->ended);
}

/* The kernel tells of lost writes once: it may have told the keeper's flush, which was under way beside this one. */
static int flush_result(const struct commit *c, int result)
{
    return result < 0 ? result : image_failed(c->q->base.image);
}

static void end_flush_done(struct io_op *op, int result)
{
    struct commit *c = (struct commit *)((char *)op - offsetof(struct commit, flush));
    c->result = flush_result(c, result);
    end(c);
}

static void submit_flush(struct commit *c, void (*done)(struct io_op *op, int result))
{
    c->flush = (struct io_op){.kind = IO_FLUSH, .file = c->q->base.file, .done = done};
    io_submit(c->queue->loop, &c->flush);
}

static void writes_done(struct commit *c)
{
    (void)pthread_mutex_lock(&c->q->lock);
    round_end(c);
    bool more = c->result == 0 && (c->slices_left || c->l1_left);
    if (more)
        collect(c);
    more = more && c->record_count;
    (void)pthread_mutex_unlock(&c->q->lock);
    if (more)
        run_round(c);
    else if (c->result < 0)
        end(c);
    else
        submit_flush(c, end_flush_done);
}

static void write_done(struct io_op *op, int result);

static void submit_writes(struct commit *c)
{
    while (c->free_ops && c->result == 0) {
        unsigned i = (unsigned)__builtin_ctz(c->free_ops);
        struct commit_op *w = &c->ops[i];
        w->op = (struct io_op){.kind = IO_WRITE, .file = c->q->base.file, .iov = w->iov, .done = write_done};
        w->op.length = next_write(c, w->iov, &w->op.iovcnt, &w->op.offset);
        if (!w->op.length)
            break;
        c->free_ops &= ~(1u << i);
        c->in_flight++;
        io_submit(c->queue->loop, &w->op);
    }
    if (!c->in_flight)
        writes_done(c);
}

static void write_done(struct io_op *op, int result)
{
    struct commit_op *w = (struct commit_op *)((char *)op - offsetof(struct commit_op, op));
    struct commit *c = w->commit;
    c->free_ops |= 1u << (w - c->ops);
    c->in_flight--;
    if (result < 0 && !c->result)
        c->result = flush_result(c, result);
    submit_writes(c);
}

static void barrier_done(struct io_op *op, int result)
{
    struct commit *c = (struct commit *)((char *)op - offsetof(struct commit, flush));
    c->result = flush_result(c, result);
    submit_writes(c);
}

/* Loop's thread, unlocked: what collect() gathered leaves. */
static void run_round(struct commit *c)
{
    qsort(c->records, c->record_count, sizeof(c->records[0]), by_offset);
    if (c->barrier && c->result == 0)
        submit_flush(c, barrier_done);
    else
        submit_writes(c);
}

static void poke(struct data_queue *queue, bool force)
{
    struct qcow2 *q = queue->q;
    struct commit *c = q->commit;
    (void)pthread_mutex_lock(&q->lock);
    if (force)
        commit_want(q);
    bool start = !q->frozen && !c->running && (c->waiters || c->wanted);
    if (start)
        begin(c, queue);
    (void)pthread_mutex_unlock(&q->lock);
    if (start)
        run_round(c);
}

void commit_poke(struct data_queue *queue)
{
    poke(queue, false);
}

void commit_force(struct data_queue *queue)
{
    poke(queue, true);
}

static void soon_run(struct io_task *task)
{
    struct commit *c = (struct commit *)((char *)task - offsetof(struct commit, soon_task));
    struct qcow2 *q = c->q;
    (void)pthread_mutex_lock(&q->lock);
    struct data_queue *queue = c->soon_queue;
    c->soon_queue = NULL;
    c->soon_posted = false;
    (void)pthread_mutex_unlock(&q->lock);
    poke(queue, false);
}

void commit_soon(struct qcow2 *q)
{
    struct commit *c = q->commit;
    struct data_queue *queue = q->data->queues;
    commit_want(q);
    if (!c->wanted || q->frozen || c->running || c->soon_posted || !queue)
        return;
    c->soon_posted = true;
    c->soon_queue = queue;
    io_loop_post(queue->loop, &c->soon_task);
}

void commit_leave(struct data_queue *queue)
{
    struct qcow2 *q = queue->q;
    struct commit *c = q->commit;
    for (;;) {
        (void)pthread_mutex_lock(&q->lock);
        bool busy = (c->running && c->queue == queue) || (c->soon_posted && c->soon_queue == queue);
        (void)pthread_mutex_unlock(&q->lock);
        if (!busy || io_loop_turn(queue->loop, -1) < 0)
            return;
    }
}

/* ---- blocking -------------------------------------------------------------------------------------------------- */

static int write_blocking(struct commit *c)
{
    struct iovec iov[COMMIT_MERGE];
    uint64_t offset;
    unsigned count;
    while (next_write(c, iov, &count, &offset)) {
        for (unsigned i = 0; i < count; i++) {
            int r = io_file_write(c->q->base.file, iov[i].iov_base, iov[i].iov_len, offset + (uint64_t)i * c->block);
            if (r < 0)
                return r;
        }
    }
    return 0;
}

int qcow2_commit_blocking(struct qcow2 *q)
{
    struct commit *c = q->commit;
    if (!c)
        return 0;
    (void)pthread_mutex_lock(&q->lock);
    while (c->running)
        (void)pthread_cond_wait(&c->ended, &q->lock);
    begin(c, NULL);
    while (c->result == 0 && c->record_count) {
        (void)pthread_mutex_unlock(&q->lock);
        qsort(c->records, c->record_count, sizeof(c->records[0]), by_offset);
        if (c->barrier)
            c->result = flush_result(c, io_file_flush(q->base.file));
        if (c->result == 0)
            c->result = write_blocking(c);
        (void)pthread_mutex_lock(&q->lock);
        round_end(c);
        collect(c);
    }
    round_end(c);
    (void)pthread_mutex_unlock(&q->lock);
    if (c->result == 0)
        c->result = flush_result(c, io_file_flush(q->base.file));
    int result = c->result;
    end(c);
    return result;
}
