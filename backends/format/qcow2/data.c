// SPDX-License-Identifier: Apache-2.0
/*
 * The data path's frame: setting up and taking down what a layer and its queues keep, waking parked chunks on their own
 * loops, and the short way of a request that is one mapped run.
 */
#include "backends/format/qcow2/data.h"

#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "backends/format/qcow2/commit.h"
#include "backends/format/qcow2/guard.h"
#include "common/checked.h"
#include "common/cleanup.h"

#define SLICES_MIN 4u
#define EDGE_BYTES (4 * MIB) /* of buffers for copied edges, on each queue */
#define EDGE_COUNT_MIN 2u
#define EDGE_COUNT_MAX 64u

/* ---- memory ---------------------------------------------------------------------------------------------------- */

void *data_map(size_t size, bool writable)
{
    void *memory = mmap(NULL, size, writable ? PROT_READ | PROT_WRITE : PROT_READ,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

void data_unmap(void *memory, size_t size)
{
    if (memory)
        (void)munmap(memory, size);
}

/* ---- the layer ------------------------------------------------------------------------------------------------- */

static uint32_t log2_of(uint64_t v)
{
    return 63 - (uint32_t)__builtin_clzll(v);
}

static uint32_t slice_count(const struct qcow2 *q, size_t cache_bytes, uint32_t slice_size)
{
    uint64_t covered = (uint64_t)(slice_size / q->entry_size) << q->cluster_bits;
    /* Twice what it can have today, so that it may grow. */
    uint64_t count = MIN(cache_bytes / slice_size, 2 * div_round_up(q->base.size, covered) + 16);
    return (uint32_t)MIN(MAX(count, SLICES_MIN), (uint64_t)1 << 24);
}

static int data_setup(struct qcow2 *q, struct data *d, size_t cache_bytes, struct error *err)
{
    uint32_t slice_size = (uint32_t)MIN(q->cluster_size, UINT64_C(4096));
    d->slice_entries = slice_size / q->entry_size;
    d->slice_entry_bits = log2_of(d->slice_entries);
    d->slices_table_bits = q->l2_bits - d->slice_entry_bits;
    d->sub_bits = q->subcluster_size == q->cluster_size ? 0 : 5;
    d->sub_mask = d->sub_bits ? UINT32_MAX : 1;
    atomic_store(&d->file_end, align_up(q->file_length_at_open, q->cluster_size));
    int r = slice_cache_create(slice_count(q, cache_bytes, slice_size), slice_size, &q->slices, err);
    if (r < 0 || !q->allocator)
        return r;
    d->copy.q = q;
    d->copy.buffer = data_map(q->cluster_size, true);
    if (!d->copy.buffer)
        return error_sys(err, ENOMEM, "a table's copy");
    return commit_create(q, &q->commit, err);
}

int qcow2_data_open(struct qcow2 *q, size_t cache_bytes, struct error *err)
{
    struct data *d = calloc(1, sizeof(*d));
    if (!d)
        return error_sys(err, ENOMEM, "qcow2 data path");
    q->data = d;
    int r = data_setup(q, d, cache_bytes, err);
    if (r < 0)
        qcow2_data_close(q);
    return r;
}

void qcow2_data_close(struct qcow2 *q)
{
    struct data *d = q->data;
    if (!d)
        return;
    (void)pthread_mutex_lock(&q->lock);
    q->data = NULL; /* the keeper may still ask for a commit */
    (void)pthread_mutex_unlock(&q->lock);
    d->inflater = inflater_destroy(d->inflater);
    q->commit = commit_destroy(q->commit);
    q->slices = slice_cache_destroy(q->slices);
    data_unmap(d->copy.buffer, q->cluster_size);
    free(d);
}

/* Edges are copied for writes only. Queues unlink themselves under the lock before they free anything. */
void qcow2_data_retire(struct qcow2 *q)
{
    commit_retire(q->commit);
    LOCK_SCOPE(&q->lock);
    for (struct data_queue *queue = q->data->queues; queue; queue = queue->next)
        (void)madvise(queue->edges, queue->edge_count * queue->edge_size, MADV_DONTNEED);
}

void qcow2_data_limit(struct qcow2 *q, size_t cache_bytes)
{
    LOCK_SCOPE(&q->lock);
    slice_cache_limit(q->slices, (uint32_t)MAX(cache_bytes / q->slices->size, (size_t)SLICES_MIN));
}

void data_took(struct qcow2 *q, uint64_t host, uint64_t length)
{
    struct data *d = q->data;
    uint64_t end = host + length;
    if (end > atomic_load_explicit(&d->file_end, memory_order_relaxed))
        atomic_store_explicit(&d->file_end, end, memory_order_release);
}

/* ---- waking ---------------------------------------------------------------------------------------------------- */

static void wake_run(struct io_task *task)
{
    struct data_queue *queue = (struct data_queue *)((char *)task - offsetof(struct data_queue, wake_task));
    struct qcow2 *q = queue->q;
    (void)pthread_mutex_lock(&q->lock);
    struct waiter *woken = queue->woken;
    queue->woken = NULL;
    queue->woken_tail = &queue->woken;
    queue->wake_posted = false;
    (void)pthread_mutex_unlock(&q->lock);
    while (woken) {
        struct waiter *waiter = woken;
        woken = waiter->next;
        waiter->woken(waiter, waiter->result);
    }
}

void waiters_wake(struct waiter **list, int result)
{
    struct waiter *waiter = *list;
    *list = NULL;
    while (waiter) {
        struct waiter *next = waiter->next;
        struct data_queue *queue = waiter->queue;
        waiter->result = result;
        waiter->next = NULL;
        *queue->woken_tail = waiter;
        queue->woken_tail = &waiter->next;
        if (!queue->wake_posted) {
            queue->wake_posted = true;
            io_loop_post(queue->loop, &queue->wake_task);
        }
        waiter = next;
    }
}

void data_parked(struct data_queue *queue)
{
    if (queue->q->commit)
        commit_poke(queue);
}

static void timer_fire(struct io_timer *timer)
{
    struct data_queue *queue = (struct data_queue *)((char *)timer - offsetof(struct data_queue, timer));
    (void)pthread_mutex_lock(&queue->q->lock);
    queue->timer_mine = false;
    queue->q->data->timer_armed = false;
    (void)pthread_mutex_unlock(&queue->q->lock);
    commit_force(queue);
}

void data_dirtied(struct data_queue *queue)
{
    struct qcow2 *q = queue->q;
    bool arm = false, force;
    (void)pthread_mutex_lock(&q->lock);
    force = commit_pressure(q);
    if (!q->data->timer_armed && commit_pending(q))
        arm = q->data->timer_armed = queue->timer_mine = true;
    (void)pthread_mutex_unlock(&q->lock);
    if (arm)
        io_timer_arm(queue->loop, &queue->timer, COMMIT_DELAY_NS);
    if (force)
        commit_force(queue);
}

/* ---- queues ---------------------------------------------------------------------------------------------------- */

static struct data_queue *queue_free(struct data_queue *queue)
{
    size_t pages = (size_t)(CHUNK_POOL_MAIN + CHUNK_POOL_INNER) * 4096;
    queue->slots = inflate_slots_destroy(queue->slots);
    chunk_pool_done(&queue->pools[0]);
    chunk_pool_done(&queue->pools[1]);
    data_unmap(queue->pages, pages);
    data_unmap(queue->zeros, queue->zeros_size);
    data_unmap(queue->edges, queue->edge_count * queue->edge_size);
    free(queue);
    return NULL;
}

static int queue_setup(struct qcow2 *q, struct data_queue *queue, struct error *err)
{
    queue->q = q;
    queue->thread = pthread_self();
    queue->woken_tail = &queue->woken;
    queue->edge_waiting_tail = &queue->edge_waiting;
    queue->wake_task.run = wake_run;
    queue->timer.fire = timer_fire;
    queue->zeros_size = MAX(q->cluster_size, 64 * KIB);
    queue->edge_size = MAX(2 * q->cluster_size, UINT64_C(4096));
    queue->edge_count = (unsigned)MIN(MAX(EDGE_BYTES / queue->edge_size, EDGE_COUNT_MIN), EDGE_COUNT_MAX);
    int r = chunk_pool_init(&queue->pools[0], CHUNK_POOL_MAIN, err);
    if (r == 0)
        r = chunk_pool_init(&queue->pools[1], CHUNK_POOL_INNER, err);
    if (r == 0)
        r = inflate_slots_create(queue, &queue->slots, err);
    if (r < 0)
        return r;
    queue->pages = data_map((size_t)(CHUNK_POOL_MAIN + CHUNK_POOL_INNER) * 4096, true);
    queue->zeros = data_map(queue->zeros_size, false);
    queue->edges = data_map(queue->edge_count * queue->edge_size, true);
    if (!queue->pages || !queue->zeros || !queue->edges)
        return error_sys(err, ENOMEM, "queue of a qcow2 layer");
    return 0;
}

int qcow2_queue_create(struct layer *layer, struct image_queue *queue, struct layer_queue **ret_lq, struct error *err)
{
    struct qcow2 *q = (struct qcow2 *)layer;
    struct data_queue *dq = calloc(1, sizeof(*dq));
    if (!dq)
        return error_sys(err, ENOMEM, "queue of a qcow2 layer");
    dq->loop = image_queue_loop(queue);
    int r = queue_setup(q, dq, err);
    if (r < 0) {
        queue_free(dq);
        return r;
    }
    LOCK_SCOPE(&q->lock);
    dq->next = q->data->queues;
    q->data->queues = dq;
    *ret_lq = &dq->base;
    return 0;
}

void qcow2_queue_destroy(struct layer_queue *lq)
{
    struct data_queue *queue = (struct data_queue *)lq;
    struct qcow2 *q = queue->q;
    (void)pthread_mutex_lock(&q->lock);
    struct data_queue **link = &q->data->queues;
    while (*link != queue)
        link = &(*link)->next;
    *link = queue->next;
    bool mine = queue->timer_mine;
    if (mine)
        q->data->timer_armed = false;
    (void)pthread_mutex_unlock(&q->lock);
    if (mine)
        io_timer_cancel(queue->loop, &queue->timer);
    if (q->commit)
        commit_leave(queue);
    queue_free(queue);
}

/* ---- requests -------------------------------------------------------------------------------------------------- */

static void short_done(struct io_op *op, int result)
{
    layer_request_done((struct image_request *)((char *)op - offsetof(struct image_request, io)), result);
}

/* A request that is one mapped run needs no chunk: one lookup, one operation in the request itself. */
static bool submit_short(struct data_queue *queue, struct image_request *request)
{
    const struct qcow2 *q = queue->q;
    struct mapping mapping;
    bool write = request->op == IMAGE_WRITE;
    if (map_lookup(q, request->offset, request->length, write ? MAP_COPIED : 0, &mapping) < 0 ||
        mapping.kind != MAP_DATA || mapping.length != request->length)
        return false;
    if (write && (!mapping.copied || guard_hits(q, mapping.host, mapping.length)))
        return false;
    request->io = (struct io_op){
        .kind = write ? IO_WRITE : IO_READ,
        .file = queue->base.layer->file,
        .iov = request->iov,
        .iovcnt = request->iovcnt,
        .offset = mapping.host,
        .length = mapping.length,
        .done = short_done,
    };
    io_submit(queue->loop, &request->io);
    return true;
}

void qcow2_submit(struct layer_queue *lq, struct image_request *request)
{
    struct data_queue *queue = (struct data_queue *)lq;
    /* A child's vector may hold more than its length: those are sliced. */
    if ((request->op == IMAGE_READ || request->op == IMAGE_WRITE) && request->chain && submit_short(queue, request))
        return;
    request_start(queue, request);
}

void qcow2_commit_soon(struct qcow2 *q)
{
    LOCK_SCOPE(&q->lock);
    if (q->data && q->commit)
        commit_soon(q);
}
