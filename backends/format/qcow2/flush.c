// SPDX-License-Identifier: Apache-2.0
/* A flush: the file's alone when no table changed and none is being written; else it waits for a commit. */
#include <stddef.h>

#include "backends/format/qcow2/commit.h"
#include "backends/format/qcow2/data.h"
#include "common/cleanup.h"

static void commit_ended(struct waiter *waiter, int result)
{
    chunk_done((struct chunk *)((char *)waiter - offsetof(struct chunk, waiter)), result);
}

static void flush_done(struct io_op *op, int result)
{
    struct chunk *chunk = (struct chunk *)((char *)op - offsetof(struct chunk, op));
    if (result < 0)
        image_fail(chunk->queue->q->base.image, result);
    chunk_done(chunk, result);
}

bool flush_step(struct chunk *chunk)
{
    struct data_queue *queue = chunk->queue;
    struct qcow2 *q = queue->q;
    if (!q->commit)
        return chunk_skip(chunk, 1);
    chunk_begin(chunk, 1);
    (void)pthread_mutex_lock(&q->lock);
    bool wait = commit_running(q) || commit_pending(q);
    if (wait) {
        (void)commit_wait(chunk);
        chunk->waiter.woken = commit_ended;
    }
    (void)pthread_mutex_unlock(&q->lock);
    if (wait) {
        commit_poke(queue);
        return true;
    }
    chunk->op.kind = IO_FLUSH;
    chunk->op.iov = NULL;
    chunk->op.iovcnt = 0;
    chunk->op.offset = chunk->op.length = 0;
    chunk->op.done = flush_done;
    io_submit(queue->loop, &chunk->op);
    return true;
}
