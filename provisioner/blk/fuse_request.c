// SPDX-License-Identifier: Apache-2.0
// FUSE requests on the one file that there is. Every request may come twice (after a server's death the kernel
// sends it again), so each is one that can be done again.
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>

#include "common/checked.h"
#include "provisioner/blk/fuse_export.h"

#define BLOCK 4096u

/* ---- data ---- */

static void image_done(struct image_request *request, int result)
{
    struct fuse_slot *slot = (void *)((char *)request - offsetof(struct fuse_slot, image));
    export_count_request(&slot->thread->base, request->op, request->length, result);
    if (request->op == IMAGE_WRITE && result == 0) {
        struct fuse_write_out out = {.size = (uint32_t)request->length};
        memcpy(slot->payload, &out, sizeof(out));
        fuse_reply(slot, 0, sizeof(out));
        return;
    }
    fuse_reply(slot, result, request->op == IMAGE_READ ? (uint32_t)request->length : 0);
}

static void submit(struct fuse_slot *slot, enum image_op op, uint32_t flags, uint64_t offset, uint64_t length)
{
    bool data = op == IMAGE_READ || op == IMAGE_WRITE;
    slot->iov = (struct iovec){slot->payload, data ? length : 0};
    slot->image = (struct image_request){
        .op = op,
        .flags = flags,
        .offset = offset,
        .length = length,
        .iov = data ? &slot->iov : NULL,
        .iovcnt = data ? 1 : 0,
        .done = image_done,
    };
    image_submit(slot->thread->base.queue, &slot->image);
}

static void refuse(struct fuse_slot *slot, int error)
{
    export_count(&slot->thread->base.counters.errors, 1);
    fuse_reply(slot, error, 0);
}

static uint64_t size_of(const struct fuse_slot *slot)
{
    return atomic_load_explicit(&slot->thread->export->size, memory_order_relaxed);
}

/* Short at the end of the file. */
static void request_read(struct fuse_slot *slot, const struct fuse_read_in *in)
{
    uint64_t size = size_of(slot);
    uint64_t length = in->offset < size ? MIN(in->size, size - in->offset) : 0;
    if (length > FUSE_TRANSFER_MAX)
        refuse(slot, -EINVAL);
    else if (length == 0)
        fuse_reply(slot, 0, 0);
    else
        submit(slot, IMAGE_READ, 0, in->offset, length);
}

static void request_write(struct fuse_slot *slot, const struct fuse_write_in *in, uint32_t data)
{
    if (slot->thread->export->read_only)
        refuse(slot, -EROFS);
    else if (in->size != data || data == 0)
        refuse(slot, -EINVAL);
    else if (!range_within(in->offset, data, size_of(slot)))
        refuse(slot, -ENOSPC);
    else
        submit(slot, IMAGE_WRITE, 0, in->offset, data);
}

/* Both kinds of hole must read as zeros afterwards (loop sends its zeroing as PUNCH_HOLE), so neither is a mere
 * discard. */
static void request_fallocate(struct fuse_slot *slot, const struct fuse_fallocate_in *in)
{
    uint64_t size = size_of(slot);
    uint32_t kind = in->mode & ~(uint32_t)FALLOC_FL_KEEP_SIZE;
    if (slot->thread->export->read_only)
        refuse(slot, -EROFS);
    else if (kind == FALLOC_FL_PUNCH_HOLE && in->offset >= size)
        fuse_reply(slot, 0, 0);
    else if (kind == FALLOC_FL_PUNCH_HOLE)
        submit(slot, IMAGE_WRITE_ZEROES, IMAGE_MAY_UNMAP, in->offset, MIN(in->length, size - in->offset));
    else if (kind != FALLOC_FL_ZERO_RANGE)
        refuse(slot, -EOPNOTSUPP);
    else if (!range_within(in->offset, in->length, size))
        refuse(slot, -ENOSPC);
    else
        submit(slot, IMAGE_WRITE_ZEROES, 0, in->offset, in->length);
}

/* ---- the file itself ---- */

/* Valid for no time: the size is asked for whenever somebody wants to know it. */
static void reply_attributes(struct fuse_slot *slot)
{
    uint64_t size = size_of(slot);
    struct fuse_attr_out out = {
        .attr =
            {
                .ino = FUSE_ROOT_ID,
                .size = size,
                .blocks = div_round_up(size, 512),
                .mode = S_IFREG | (slot->thread->export->read_only ? 0400 : 0600),
                .nlink = 1,
                .blksize = BLOCK,
            },
    };
    memcpy(slot->payload, &out, sizeof(out));
    fuse_reply(slot, 0, sizeof(out));
}

/* Times, mode and owner are nobody's business here and stay; the size is the image's. */
static void request_setattr(struct fuse_slot *slot, const struct fuse_setattr_in *in)
{
    if (in->valid & FATTR_SIZE && in->size != size_of(slot))
        refuse(slot, -EPERM);
    else
        reply_attributes(slot);
}

static void request_open(struct fuse_slot *slot, const struct fuse_open_in *in)
{
    struct fuse_open_out out = {.open_flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES};
    if (slot->thread->export->read_only && (in->flags & O_ACCMODE) != O_RDONLY) {
        fuse_reply(slot, -EROFS, 0);
        return;
    }
    memcpy(slot->payload, &out, sizeof(out));
    fuse_reply(slot, 0, sizeof(out));
}

static void request_statfs(struct fuse_slot *slot)
{
    struct fuse_statfs_out out = {
        .st = {.blocks = size_of(slot) / BLOCK, .files = 1, .bsize = BLOCK, .frsize = BLOCK, .namelen = 255},
    };
    memcpy(slot->payload, &out, sizeof(out));
    fuse_reply(slot, 0, sizeof(out));
}

/* ---- dispatch ---- */

/* Bytes that must follow the header. */
static uint32_t body_size(uint32_t opcode)
{
    switch (opcode) {
    case FUSE_READ:
        return sizeof(struct fuse_read_in);
    case FUSE_WRITE:
        return sizeof(struct fuse_write_in);
    case FUSE_FALLOCATE:
        return sizeof(struct fuse_fallocate_in);
    case FUSE_SETATTR:
        return sizeof(struct fuse_setattr_in);
    case FUSE_OPEN:
        return sizeof(struct fuse_open_in);
    default:
        return 0;
    }
}

static void dispatch(struct fuse_slot *slot, uint32_t opcode, const void *body, uint32_t length)
{
    switch (opcode) {
    case FUSE_READ:
        request_read(slot, body);
        break;
    case FUSE_WRITE:
        request_write(slot, body, length - (uint32_t)sizeof(struct fuse_write_in));
        break;
    case FUSE_FSYNC:
        submit(slot, IMAGE_FLUSH, 0, 0, 0);
        break;
    case FUSE_FALLOCATE:
        request_fallocate(slot, body);
        break;
    case FUSE_GETATTR:
        reply_attributes(slot);
        break;
    case FUSE_SETATTR:
        request_setattr(slot, body);
        break;
    case FUSE_OPEN:
        request_open(slot, body);
        break;
    case FUSE_STATFS:
        request_statfs(slot);
        break;
    case FUSE_RELEASE:
    case FUSE_DESTROY:
        fuse_reply(slot, 0, 0);
        break;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT: /* nothing takes long enough to be worth stopping */
        fuse_reply_none(slot);
        break;
    default: /* the kernel remembers it and does without, FLUSH and ACCESS among others */
        fuse_reply(slot, -ENOSYS, 0);
        break;
    }
}

void fuse_request(struct fuse_slot *slot, uint32_t length)
{
    const uint8_t *bytes = slot->payload - FUSE_REQUEST_HEAD;
    struct fuse_in_header head;
    if (length < sizeof(head)) {
        fuse_reply_none(slot);
        return;
    }
    memcpy(&head, bytes, sizeof(head));
    slot->unique = head.unique;
    length -= (uint32_t)sizeof(head);
    if (length < body_size(head.opcode))
        refuse(slot, -EINVAL);
    else
        dispatch(slot, head.opcode, bytes + sizeof(head), length);
}
