// SPDX-License-Identifier: Apache-2.0
/*
 * Operations that direct I/O cannot take as they are, done through a few preallocated aligned buffers, window by
 * window: a read is copied out; a write whose window has partial blocks reads it first (the caller is alone on these
 * blocks); IO_ZERO where the file system cannot zero a range is a write of zeros up to the end of the file. When no
 * buffer is free the operation waits in line. The same slots carry the part-transfers that a test's seam asks for.
 *
 * The inner operations are aligned and go straight to op_start; their short transfers are finished by op.c. Loop's
 * thread only.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "backends/io/engine.h"
#include "common/checked.h"

#define BOUNCE_SLOTS 8u
#define BOUNCE_BYTES (128u << 10)

enum bounce_stage { STAGE_READ, STAGE_FILL, STAGE_WRITE, STAGE_PIECE };

struct bounce {
    struct io_op inner; /* first: inner.done finds the slot by it */
    struct io_loop *loop;
    struct io_op *op;
    uint64_t end; /* in the file: where the operation ends */
    struct iovec iov;
    uint8_t *buffer;
    enum bounce_stage stage;
    struct bounce *next;
};

struct bounce_pool {
    struct bounce slots[BOUNCE_SLOTS];
    struct bounce *free;
    struct op_list waiting; /* for a slot */
    uint8_t *memory;
};

static void bounce_done(struct io_op *inner, int result);
static void release(struct bounce *slot);

int bounce_create(struct io_loop *loop, struct error *err)
{
    struct bounce_pool *pool = calloc(1, sizeof(*pool));
    if (!pool)
        return error_sys(err, ENOMEM, "allocate bounce buffers");
    void *memory = mmap(NULL, (size_t)BOUNCE_SLOTS * BOUNCE_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        free(pool);
        return error_sys(err, ENOMEM, "allocate bounce buffers");
    }
    pool->memory = memory;
    op_list_init(&pool->waiting);
    for (unsigned i = 0; i < BOUNCE_SLOTS; i++) {
        struct bounce *slot = &pool->slots[i];
        slot->loop = loop;
        slot->buffer = pool->memory + (size_t)i * BOUNCE_BYTES;
        slot->next = pool->free;
        pool->free = slot;
    }
    loop->bounce = pool;
    return 0;
}

void bounce_destroy(struct io_loop *loop)
{
    if (!loop->bounce)
        return;
    (void)munmap(loop->bounce->memory, (size_t)BOUNCE_SLOTS * BOUNCE_BYTES);
    free(loop->bounce);
    loop->bounce = NULL;
}

bool bounce_inner(const struct io_op *op)
{
    return op->done == bounce_done;
}

bool bounce_needed(const struct io_op *op)
{
    const struct io_file *file = op->file;
    uint64_t bytes = op->offset | op->length | op->progress;
    uintptr_t memory = 0;
    for (unsigned i = 0; i < op->iovcnt; i++) {
        bytes |= op->iov[i].iov_len;
        memory |= (uintptr_t)op->iov[i].iov_base;
    }
    return ((bytes & (file->offset_align - 1)) | (memory & (file->memory_align - 1))) != 0;
}

/* Copy between the operation's memory from `skip` on and `buffer`. */
static void copy_out(const struct io_op *op, uint64_t skip, const uint8_t *buffer, uint64_t length)
{
    for (unsigned i = 0; i < op->iovcnt && length; i++) {
        size_t len = op->iov[i].iov_len;
        if (skip >= len) {
            skip -= len;
            continue;
        }
        size_t part = MIN(len - skip, length);
        memcpy((uint8_t *)op->iov[i].iov_base + skip, buffer, part);
        buffer += part;
        length -= part;
        skip = 0;
    }
}

static void copy_in(const struct io_op *op, uint64_t skip, uint8_t *buffer, uint64_t length)
{
    if (op->kind == IO_ZERO) {
        memset(buffer, 0, length);
        return;
    }
    for (unsigned i = 0; i < op->iovcnt && length; i++) {
        size_t len = op->iov[i].iov_len;
        if (skip >= len) {
            skip -= len;
            continue;
        }
        size_t part = MIN(len - skip, length);
        memcpy(buffer, (const uint8_t *)op->iov[i].iov_base + skip, part);
        buffer += part;
        length -= part;
        skip = 0;
    }
}

static void finish(struct bounce *slot, int result)
{
    struct io_loop *loop = slot->loop;
    struct io_op *op = slot->op;
    release(slot);
    op_finish(loop, op, result);
}

static void start_inner(struct bounce *slot, enum bounce_stage stage, enum io_kind kind, uint64_t offset)
{
    slot->stage = stage;
    slot->inner = (struct io_op){
        .kind = kind,
        .file = slot->op->file,
        .iov = &slot->iov,
        .iovcnt = 1,
        .offset = offset,
        .length = slot->iov.iov_len,
        .done = bounce_done,
    };
    op_start(slot->loop, &slot->inner);
}

/* The bytes of the operation that lie in the current window. */
static uint64_t window_part(const struct bounce *slot, uint64_t *ret_skip)
{
    const struct io_op *op = slot->op;
    uint64_t at = op->offset + op->progress;
    *ret_skip = at - slot->inner.offset;
    return MIN(slot->end - at, slot->iov.iov_len - *ret_skip);
}

/* Start on the blocks around offset + progress. */
static void bounce_window(struct bounce *slot)
{
    const struct io_op *op = slot->op;
    uint64_t align = op->file->offset_align;
    uint64_t at = op->offset + op->progress;
    uint64_t start = align_down(at, align);
    uint64_t stop = MIN(align_up(slot->end, align), start + BOUNCE_BYTES);
    slot->iov = (struct iovec){slot->buffer, stop - start};
    if (op->kind == IO_READ) {
        start_inner(slot, STAGE_READ, IO_READ, start);
    } else if (start != at || stop > slot->end) {
        start_inner(slot, STAGE_FILL, IO_READ, start);
    } else {
        copy_in(op, op->progress, slot->buffer, stop - start);
        start_inner(slot, STAGE_WRITE, IO_WRITE, start);
    }
}

static void bounce_done(struct io_op *inner, int result)
{
    struct bounce *slot = (struct bounce *)inner;
    struct io_op *op = slot->op;
    if (result < 0) {
        finish(slot, result);
        return;
    }
    uint64_t skip;
    uint64_t part = window_part(slot, &skip);
    switch (slot->stage) {
    case STAGE_FILL:
        copy_in(op, op->progress, slot->buffer + skip, part);
        start_inner(slot, STAGE_WRITE, IO_WRITE, inner->offset);
        return;
    case STAGE_READ:
        copy_out(op, op->progress, slot->buffer + skip, part);
        break;
    case STAGE_WRITE:
    case STAGE_PIECE:
        break;
    }
    op->progress += part;
    if (op->offset + op->progress == slot->end) {
        finish(slot, 0);
    } else if (slot->stage == STAGE_PIECE) {
        struct io_loop *loop = slot->loop;
        release(slot);
        io_seam_release(loop, op);
    } else {
        bounce_window(slot);
    }
}

/* Take `op` on. IO_ZERO must not move the end of the file: it is cut there. False when nothing is left to do. */
static bool begin(struct bounce *slot, struct io_op *op)
{
    struct stat st;
    slot->op = op;
    slot->end = op->offset + op->length;
    if (op->kind == IO_ZERO && !op->file->block_device && fstat(op->file->fd, &st) == 0)
        slot->end = MIN(slot->end, (uint64_t)st.st_size);
    if (op->offset >= slot->end) {
        op_finish_later(slot->loop, op, 0);
        return false;
    }
    bounce_window(slot);
    return true;
}

static void release(struct bounce *slot)
{
    struct bounce_pool *pool = slot->loop->bounce;
    struct io_op *op;
    while ((op = op_list_take(&pool->waiting)) != NULL) {
        if (begin(slot, op))
            return;
    }
    slot->next = pool->free;
    pool->free = slot;
}

void bounce_start(struct io_loop *loop, struct io_op *op)
{
    struct bounce_pool *pool = loop->bounce;
    struct bounce *slot = pool->free;
    if (!slot) {
        op_list_append(&pool->waiting, op);
        return;
    }
    pool->free = slot->next;
    if (!begin(slot, op)) {
        slot->next = pool->free;
        pool->free = slot;
    }
}

void bounce_piece(struct io_loop *loop, struct io_op *op, uint64_t length)
{
    struct bounce_pool *pool = loop->bounce;
    struct bounce *slot = pool->free;
    if (!slot || (op->file->direct && bounce_needed(op))) {
        op_issue(loop, op); /* the seam's wish is a wish: the transfer goes whole */
        return;
    }
    pool->free = slot->next;
    slot->op = op;
    slot->end = op->offset + op->length;
    uint64_t skip = op->progress;
    unsigned i = 0;
    while (skip >= op->iov[i].iov_len)
        skip -= op->iov[i++].iov_len;
    slot->iov.iov_base = (uint8_t *)op->iov[i].iov_base + skip;
    slot->iov.iov_len = MIN(op->iov[i].iov_len - skip, align_up(length, op->file->offset_align));
    start_inner(slot, STAGE_PIECE, op->kind, op->offset + op->progress);
}
