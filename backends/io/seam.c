// SPDX-License-Identifier: Apache-2.0
/* The seam's side of loop operations; the blocking forms have theirs in file_sync.c. Nothing here runs in production. */
#include "backends/io/engine.h"
#include "common/checked.h"

#define SEAM_IOV 1024u

static enum io_seam_kind seam_kind(enum io_kind kind)
{
    switch (kind) {
    case IO_READ:
        return SEAM_READ;
    case IO_WRITE:
        return SEAM_WRITE;
    case IO_FLUSH:
        return SEAM_FLUSH;
    case IO_DISCARD:
        return SEAM_DISCARD;
    default:
        return SEAM_ZERO;
    }
}

/* The event for what is left of `op`; `iov` has room for SEAM_IOV entries. */
static struct io_seam_event seam_event(const struct io_op *op, uint64_t progress, struct iovec *iov)
{
    struct io_seam_event event = {.kind = seam_kind(op->kind)};
    if (op->kind == IO_FLUSH)
        return event;
    event.offset = op->offset + progress;
    event.length = op->length - progress;
    if (op->kind > IO_WRITE)
        return event;
    event.iov = iov;
    for (unsigned i = 0; i < op->iovcnt && event.iovcnt < SEAM_IOV; i++) {
        size_t len = op->iov[i].iov_len;
        if (progress >= len) {
            progress -= len;
            continue;
        }
        iov[event.iovcnt++] = (struct iovec){(uint8_t *)op->iov[i].iov_base + progress, len - progress};
        progress = 0;
    }
    return event;
}

void seam_submit(struct io_loop *loop, struct io_op *op)
{
    struct io_seam *seam = op->file->seam;
    if (!seam->hold || !seam->hold(seam, loop, op))
        io_seam_release(loop, op);
}

void io_seam_release(struct io_loop *loop, struct io_op *op)
{
    struct io_seam *seam = op->file->seam;
    int r = 0;
    if (seam && seam->before) {
        struct iovec iov[SEAM_IOV];
        struct io_seam_event event = seam_event(op, op->progress, iov);
        r = seam->before(seam, &event);
    }
    if (r < 0)
        op_finish_later(loop, op, r);
    else if (r > 0 && op->kind <= IO_WRITE && (uint64_t)r < op->length - op->progress)
        bounce_piece(loop, op, (uint64_t)r);
    else
        op_issue(loop, op);
}

void io_seam_finish(struct io_loop *loop, struct io_op *op, int result)
{
    op_finish_later(loop, op, result);
}

int seam_after(struct io_op *op, int result)
{
    struct io_seam *seam = op->file->seam;
    if (!seam->after || bounce_inner(op))
        return result;
    struct iovec iov[SEAM_IOV];
    struct io_seam_event event = seam_event(op, 0, iov);
    return seam->after(seam, &event, result);
}

void io_file_set_seam(struct io_file *file, struct io_seam *seam)
{
    file->seam = seam;
}
