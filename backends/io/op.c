// SPDX-License-Identifier: Apache-2.0
/*
 * The way of one operation, the same for both engines: start it, finish what the kernel did only in part, fill what
 * lies beyond the end of the file with zeros, tell its owner. Runs on the loop's thread; nothing blocks or allocates.
 *
 * An operation carries its own state: `progress` counts bytes done. After a short transfer the rest goes entry by
 * entry of its iov, which needs no memory for a shortened vector and is rare enough not to matter.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>

#include "backends/io/engine.h"
#include "common/checked.h"

const struct iovec *op_next_iov_slow(const struct io_op *op, struct iovec *rest, unsigned *ret_count)
{
    uint64_t skip = op->progress;
    if (skip == 0) {
        *ret_count = IOV_MAX;
        return op->iov;
    }
    unsigned i = 0;
    while (i < op->iovcnt && skip >= op->iov[i].iov_len)
        skip -= op->iov[i++].iov_len;
    assert(i < op->iovcnt);
    rest->iov_base = (uint8_t *)op->iov[i].iov_base + skip;
    rest->iov_len = op->iov[i].iov_len - skip;
    *ret_count = 1;
    return rest;
}

int op_fallocate_mode(enum io_kind kind)
{
    return FALLOC_FL_KEEP_SIZE | (kind == IO_DISCARD ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
}

void op_start(struct io_loop *loop, struct io_op *op)
{
    if (unlikely(loop->queued.head != NULL) || unlikely(!loop->engine->start(loop, op)))
        op_list_append(&loop->queued, op);
}

void op_issue(struct io_loop *loop, struct io_op *op)
{
    if (op->kind <= IO_WRITE && op->file->direct && unlikely(bounce_needed(op)))
        bounce_start(loop, op);
    else
        op_start(loop, op);
}

void io_submit(struct io_loop *loop, struct io_op *op)
{
    op->progress = 0;
    if (op->kind > IO_ZERO) {
        op_start(loop, op);
        return;
    }
    if (unlikely(op->length == 0 && op->kind != IO_FLUSH))
        op_finish_later(loop, op, 0);
    else if (unlikely(op->file->seam != NULL))
        seam_submit(loop, op);
    else
        op_issue(loop, op);
}

void op_finish(struct io_loop *loop, struct io_op *op, int result)
{
    (void)loop;
    if (unlikely(op->file->seam != NULL))
        result = seam_after(op, result);
    if (op->kind == IO_FLUSH)
        result = file_flushed(op->file, result);
    op->done(op, result);
}

void op_finish_later(struct io_loop *loop, struct io_op *op, int result)
{
    op->progress = (uint64_t)(int64_t)result;
    op_list_append(&loop->ready, op);
}

/* Zeros for what a read asked beyond the end of the file. */
static void fill_rest(const struct io_op *op)
{
    uint64_t skip = op->progress;
    for (unsigned i = 0; i < op->iovcnt; i++) {
        size_t len = op->iov[i].iov_len;
        if (skip >= len) {
            skip -= len;
            continue;
        }
        memset((uint8_t *)op->iov[i].iov_base + skip, 0, len - skip);
        skip = 0;
    }
}

static void complete_error(struct io_loop *loop, struct io_op *op, int result)
{
    if (result == -EINTR || result == -EAGAIN)
        op_list_append(&loop->queued, op);
    else if (op->kind == IO_ZERO && (result == -EOPNOTSUPP || (result == -EINVAL && op->file->block_device)))
        bounce_start(loop, op);
    else
        op_finish(loop, op, result);
}

static void complete_short(struct io_loop *loop, struct io_op *op, int result)
{
    op->progress += (uint64_t)result;
    if (op->kind == IO_WRITE) {
        if (result == 0)
            op_finish(loop, op, -EIO);
        else
            op_list_append(&loop->queued, op);
        return;
    }
    /* A direct read ends off the block grid only at the end of the file. */
    if (result == 0 || !is_aligned(op->progress, op->file->offset_align)) {
        fill_rest(op);
        op_finish(loop, op, 0);
    } else {
        op_list_append(&loop->queued, op);
    }
}

void op_complete(struct io_loop *loop, struct io_op *op, int result)
{
    if (op->kind > IO_ZERO) {
        op->done(op, result);
        return;
    }
    uint64_t left = op->kind <= IO_WRITE ? op->length - op->progress : 0;
    if (likely(result >= 0 && (uint64_t)result == left))
        op_finish(loop, op, 0);
    else if (result < 0)
        complete_error(loop, op, result);
    else if ((uint64_t)result < left)
        complete_short(loop, op, result);
    else
        op_finish(loop, op, -EIO);
}

void op_start_queued(struct io_loop *loop)
{
    while (loop->queued.head) {
        struct io_op *op = op_list_take(&loop->queued);
        if (!loop->engine->start(loop, op)) {
            op->next = loop->queued.head;
            loop->queued.head = op;
            if (!op->next)
                loop->queued.tail = &op->next;
            return;
        }
    }
}

int op_dispatch_ready(struct io_loop *loop)
{
    struct io_op *op = loop->ready.head;
    int count = 0;
    op_list_init(&loop->ready);
    while (op) {
        struct io_op *next = op->next;
        op_finish(loop, op, (int)(int64_t)op->progress);
        op = next;
        count++;
    }
    return count;
}
