// SPDX-License-Identifier: Apache-2.0
/*
 * Carrying out a planned allocation: old content of the edges is read (as the guest sees it, by a read of this same
 * layer, so that it may come from a compressed or shared cluster or from below), then edges and data leave in one
 * write. The allocation in flight keeps the entries, and with them what the edges read, as they were.
 */
#include <stddef.h>
#include <string.h>

#include "backends/format/qcow2/data.h"
#include "common/checked.h"

/* ---- buffers --------------------------------------------------------------------------------------------------- */

static uint8_t *edge_take(struct data_queue *queue)
{
    uint8_t *buffer = queue->edge_free;
    if (buffer)
        memcpy(&queue->edge_free, buffer, sizeof(queue->edge_free));
    else if (queue->edge_used < queue->edge_count)
        buffer = queue->edges + queue->edge_used++ * queue->edge_size;
    return buffer;
}

static void edges_read(struct chunk *chunk);

static void edge_return(struct data_queue *queue, uint8_t *buffer)
{
    memcpy(buffer, &queue->edge_free, sizeof(queue->edge_free));
    queue->edge_free = buffer;
    struct chunk *chunk = queue->edge_waiting;
    if (!chunk)
        return;
    queue->edge_waiting = chunk->next;
    if (!chunk->next)
        queue->edge_waiting_tail = &queue->edge_waiting;
    chunk->edge_buffer = edge_take(queue);
    edges_read(chunk);
}

/* ---- the write --------------------------------------------------------------------------------------------------- */

static void finish(struct chunk *chunk, int result)
{
    struct data_queue *queue = chunk->queue;
    uint8_t *buffer = chunk->edge_buffer;
    write_finish(chunk, result);
    if (buffer)
        edge_return(queue, buffer);
}

static void write_done(struct io_op *op, int result)
{
    finish((struct chunk *)((char *)op - offsetof(struct chunk, op)), result);
}

static struct iovec edge_iov(struct chunk *chunk, unsigned i)
{
    if (chunk->edge_kind[i] == EDGE_ZERO)
        return (struct iovec){.iov_base = chunk->queue->zeros, .iov_len = chunk->edge[i]};
    return (struct iovec){.iov_base = chunk->edge_buffer + i * chunk->queue->q->cluster_size,
                          .iov_len = chunk->edge[i]};
}

static void write_submit(struct chunk *chunk)
{
    const struct qcow2 *q = chunk->queue->q;
    uint64_t offset = chunk->request->offset + chunk->skip;
    (void)chunk_map_iov(chunk, chunk->length);
    unsigned first = 1;
    if (chunk->edge[0]) {
        first = 0;
        chunk->iov[0] = edge_iov(chunk, 0);
        chunk->op.iovcnt++;
    }
    chunk->op.iov = chunk->iov + first;
    if (chunk->edge[1])
        chunk->iov[first + chunk->op.iovcnt++] = edge_iov(chunk, 1);
    chunk->op.kind = IO_WRITE;
    chunk->op.offset = chunk->allocation.host + (offset & (q->cluster_size - 1)) - chunk->edge[0];
    chunk->op.length = chunk->edge[0] + chunk->length + chunk->edge[1];
    chunk->op.done = write_done;
    io_submit(chunk->queue->loop, &chunk->op);
}

/* ---- old content ------------------------------------------------------------------------------------------------- */

/* What lies beyond the image's end shall read as zeros should it grow, whatever a longer layer below holds. */
static void zero_beyond_end(struct chunk *chunk)
{
    uint64_t size = chunk->queue->base.layer->size;
    for (unsigned i = 0; i < 2; i++) {
        const struct image_request *child = &chunk->child[i];
        if (chunk->edge_kind[i] != EDGE_READ || child->offset + child->length <= size)
            continue;
        uint64_t from = size > child->offset ? size - child->offset : 0;
        memset((uint8_t *)chunk->child_iov[i].iov_base + from, 0, child->length - from);
    }
}

static void edges_put(struct chunk *chunk, int result)
{
    if (result < 0 && !chunk->child_result)
        chunk->child_result = result;
    if (--chunk->child_pending)
        return;
    if (chunk->child_result) {
        finish(chunk, chunk->child_result);
        return;
    }
    zero_beyond_end(chunk);
    write_submit(chunk);
}

static void edge_done(struct image_request *child, int result)
{
    edges_put(child->owner, result);
}

static void edges_read(struct chunk *chunk)
{
    uint64_t offset = chunk->request->offset + chunk->skip;
    uint64_t start[2] = {offset - chunk->edge[0], offset + chunk->length};
    chunk->child_pending = 1;
    chunk->child_result = 0;
    for (unsigned i = 0; i < 2; i++) {
        if (chunk->edge_kind[i] != EDGE_READ)
            continue;
        chunk->child_iov[i] = edge_iov(chunk, i);
        chunk->child[i] = (struct image_request){
            .op = IMAGE_READ,
            .flags = REQUEST_INNER,
            .offset = start[i],
            .length = chunk->edge[i],
            .iov = &chunk->child_iov[i],
            .iovcnt = 1,
            .done = edge_done,
            .queue = chunk->queue->base.queue,
            .owner = chunk,
        };
        chunk->child_pending++;
        request_start(chunk->queue, &chunk->child[i]);
    }
    edges_put(chunk, 0);
}

void cow_start(struct chunk *chunk)
{
    struct data_queue *queue = chunk->queue;
    chunk->edge_buffer = NULL;
    if (chunk->edge_kind[0] != EDGE_READ && chunk->edge_kind[1] != EDGE_READ) {
        write_submit(chunk);
        return;
    }
    chunk->edge_buffer = edge_take(queue);
    if (chunk->edge_buffer) {
        edges_read(chunk);
        return;
    }
    chunk->next = NULL;
    *queue->edge_waiting_tail = chunk;
    queue->edge_waiting_tail = &chunk->next;
}
