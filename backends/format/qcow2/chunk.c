// SPDX-License-Identifier: Apache-2.0
/* See chunk.h. */
#include "backends/format/qcow2/chunk.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "backends/format/qcow2/data.h"
#include "common/checked.h"

int chunk_pool_init(struct chunk_pool *pool, unsigned count, struct error *err)
{
    *pool = (struct chunk_pool){.count = count};
    pool->waiting_tail = &pool->waiting;
    pool->chunks = data_map(count * sizeof(*pool->chunks), true);
    return pool->chunks ? 0 : error_sys(err, ENOMEM, "request chunks");
}

void chunk_pool_done(struct chunk_pool *pool)
{
    data_unmap(pool->chunks, pool->count * sizeof(*pool->chunks));
    pool->chunks = NULL;
}

static struct chunk_pool *pool_of(struct data_queue *queue, const struct image_request *request)
{
    return &queue->pools[request->flags & REQUEST_INNER ? 1 : 0];
}

static void resume_task(struct io_task *task)
{
    chunk_resume((struct chunk *)((char *)task - offsetof(struct chunk, task)));
}

static void resume_alloc(struct io_task *task)
{
    chunk_resume((struct chunk *)((char *)task - offsetof(struct chunk, alloc.task)));
}

/* A chunk used for the first time: what stays the same for all its lives. */
static struct chunk *chunk_make(struct data_queue *queue, struct chunk_pool *pool)
{
    size_t index = pool->used++;
    struct chunk *chunk = &pool->chunks[index];
    chunk->queue = queue;
    chunk->op.file = queue->base.layer->file;
    chunk->waiter.queue = queue;
    chunk->task.run = resume_task;
    chunk->alloc.task.run = resume_alloc;
    chunk->alloc.loop = queue->loop;
    if (pool != queue->pools)
        index += queue->pools[0].count;
    chunk->page = (char *)queue->pages + index * 4096;
    return chunk;
}

static struct chunk *chunk_get(struct data_queue *queue, struct chunk_pool *pool)
{
    struct chunk *chunk = pool->free;
    if (chunk)
        pool->free = chunk->next;
    else if (pool->used < pool->count)
        chunk = chunk_make(queue, pool);
    return chunk;
}

static void request_put(struct image_request *request)
{
    if (--request->pending)
        return;
    if (request->flags & REQUEST_INNER)
        request->done(request, request->result);
    else
        layer_request_done(request, request->result);
}

static bool request_step(struct chunk *chunk)
{
    switch (chunk->request->op) {
    case IMAGE_READ:
        return read_step(chunk);
    case IMAGE_WRITE:
        return write_step(chunk);
    case IMAGE_WRITE_ZEROES:
    case IMAGE_DISCARD:
        return zero_step(chunk);
    case IMAGE_STATUS:
        return status_step(chunk);
    case IMAGE_FLUSH:
        return flush_step(chunk);
    }
    return chunk_fail(chunk, -EOPNOTSUPP);
}

/* A flush is one chunk of no bytes, whatever its length says (which must survive: a write with FUA becomes one). */
static uint64_t request_end(const struct image_request *request)
{
    return request->op == IMAGE_FLUSH ? 1 : request->length;
}

static void request_continue(struct data_queue *queue, struct chunk_pool *pool, struct image_request *request)
{
    while (request->position < request_end(request)) {
        struct chunk *chunk = chunk_get(queue, pool);
        if (!chunk) {
            request->next = NULL;
            *pool->waiting_tail = request;
            pool->waiting_tail = &request->next;
            return;
        }
        chunk->request = request;
        chunk->skip = request->position;
        chunk->child_result = 0;
        if (!request_step(chunk)) {
            data_parked(queue);
            return;
        }
    }
    request_put(request);
}

void request_start(struct data_queue *queue, struct image_request *request)
{
    request->position = 0;
    request->pending = 1;
    request->result = 0;
    request_continue(queue, pool_of(queue, request), request);
}

static void chunk_put(struct chunk *chunk)
{
    struct data_queue *queue = chunk->queue;
    struct chunk_pool *pool = pool_of(queue, chunk->request);
    chunk->next = pool->free;
    pool->free = chunk;
    if (!pool->waiting || pool->draining)
        return;
    /* Steps below may end chunks at once and come back here: only the outermost loop hands on. */
    pool->draining = true;
    while (pool->waiting && pool->free) {
        struct image_request *request = pool->waiting;
        pool->waiting = request->next;
        if (!pool->waiting)
            pool->waiting_tail = &pool->waiting;
        request_continue(queue, pool, request);
    }
    pool->draining = false;
}

void chunk_begin(struct chunk *chunk, uint64_t length)
{
    chunk->length = length;
    chunk->request->position += length;
    chunk->request->pending++;
}

void chunk_done(struct chunk *chunk, int result)
{
    struct image_request *request = chunk->request;
    if (result < 0 && !request->result)
        request->result = result;
    chunk_put(chunk);
    request_put(request);
}

bool chunk_skip(struct chunk *chunk, uint64_t length)
{
    chunk->request->position += length;
    chunk_put(chunk);
    return true;
}

bool chunk_fail(struct chunk *chunk, int result)
{
    struct image_request *request = chunk->request;
    if (!request->result)
        request->result = result;
    request->position = request_end(request);
    chunk_put(chunk);
    return true;
}

void chunk_resume(struct chunk *chunk)
{
    struct data_queue *queue = chunk->queue;
    struct image_request *request = chunk->request;
    if (request_step(chunk))
        request_continue(queue, pool_of(queue, request), request);
    else
        data_parked(queue);
}

static void chunk_woken(struct waiter *waiter, int result)
{
    struct chunk *chunk = (struct chunk *)((char *)waiter - offsetof(struct chunk, waiter));
    if (result >= 0) {
        chunk_resume(chunk);
        return;
    }
    struct data_queue *queue = chunk->queue;
    struct image_request *request = chunk->request;
    (void)chunk_fail(chunk, result);
    request_continue(queue, pool_of(queue, request), request);
}

int chunk_park(struct chunk *chunk, struct waiter **list)
{
    chunk->waiter.woken = chunk_woken;
    chunk->waiter.next = *list;
    *list = &chunk->waiter;
    return CHUNK_PARKED;
}

void chunk_yield(struct chunk *chunk)
{
    io_loop_post(chunk->queue->loop, &chunk->task);
}

/* Zeros as the source: one small area, as often as needed. */
static uint64_t map_zeros(struct chunk *chunk, uint64_t length)
{
    const struct data_queue *queue = chunk->queue;
    uint64_t covered = 0;
    unsigned count = 0;
    for (; covered < length && count < CHUNK_IOV - 2; count++) {
        size_t part = MIN(length - covered, (uint64_t)queue->zeros_size);
        chunk->iov[count + 1] = (struct iovec){.iov_base = queue->zeros, .iov_len = part};
        covered += part;
    }
    chunk->op.iov = chunk->iov + 1;
    chunk->op.iovcnt = count;
    return covered;
}

uint64_t chunk_map_iov(struct chunk *chunk, uint64_t length)
{
    const struct image_request *request = chunk->request;
    if (request->op == IMAGE_WRITE_ZEROES)
        return map_zeros(chunk, length);
    uint64_t covered = 0;
    chunk->op.iov = chunk->iov + 1;
    chunk->op.iovcnt =
        iov_slice(request->iov, request->iovcnt, chunk->skip, length, chunk->iov + 1, CHUNK_IOV - 2, &covered);
    return covered;
}

static void transfer_done(struct io_op *op, int result)
{
    chunk_done((struct chunk *)((char *)op - offsetof(struct chunk, op)), result);
}

bool chunk_transfer(struct chunk *chunk, enum io_kind kind, uint64_t host, uint64_t length)
{
    const struct image_request *request = chunk->request;
    /* The vector of a request that a layer above made may hold more than its length. */
    if (chunk->skip == 0 && length == request->length && request->chain && request->op != IMAGE_WRITE_ZEROES) {
        chunk->op.iov = request->iov;
        chunk->op.iovcnt = request->iovcnt;
    } else {
        length = chunk_map_iov(chunk, length);
    }
    chunk->op.kind = kind;
    chunk->op.offset = host;
    chunk->op.length = length;
    chunk->op.done = transfer_done;
    chunk_begin(chunk, length);
    io_submit(chunk->queue->loop, &chunk->op);
    return true;
}
