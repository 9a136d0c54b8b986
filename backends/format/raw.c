// SPDX-License-Identifier: Apache-2.0
/*
 * Raw images: the bytes of the volume are the bytes of the file, or of the block device. Any length in bytes; a length
 * that direct I/O could not keep (its last block would be written whole) makes a writable image use the page cache.
 *
 * A request is one operation, carried in the request itself. Loop's thread throughout; no state of its own.
 */
#include <errno.h>
#include <stdlib.h>

#include "backends/format/layer.h"
#include "common/checked.h"

#define RAW_GRANULARITY 4096u
#define STATUS_EXTENTS_MAX 128u /* seeks for one request, so that a loop's turn stays short */

struct raw {
    struct layer base;
};

struct raw_queue {
    struct layer_queue base;
};

#define request_of(op) ((struct image_request *)((char *)(op)-offsetof(struct image_request, io)))

/* ---- opening and closing ---- */

/* A writable direct file's length must be a whole number of blocks. */
static int keep_length(struct io_file *file, uint64_t length, struct error *err)
{
    if (is_aligned(length, file->offset_align))
        return 0;
    int r = io_file_use_page_cache(file);
    return r < 0 ? error_sys(err, r, "leave direct I/O") : 0;
}

static int raw_open(struct image *image, struct io_file *file, const struct layer_open_options *options,
                    struct layer **ret_layer, struct error *err)
{
    uint64_t length;
    (void)image;
    int r = io_file_length(file, &length);
    if (r < 0)
        return error_sys(err, r, "measure a raw image");
    if (options->below) {
        (void)error_set(err, EINVAL, "a raw image cannot stand over another layer");
        (void)error_code(err, "backing-not-possible");
        return -EINVAL;
    }
    r = options->read_only ? 0 : keep_length(file, length, err);
    if (r < 0)
        return r;
    struct raw *raw = calloc(1, sizeof(*raw));
    if (!raw)
        return error_sys(err, ENOMEM, "open a raw image");
    raw->base.file = file;
    raw->base.size = length;
    raw->base.granularity = RAW_GRANULARITY;
    raw->base.discard = true;
    raw->base.read_only = options->read_only;
    *ret_layer = &raw->base;
    return 0;
}

static int raw_close(struct layer *layer, struct error *err)
{
    int r = layer->read_only ? 0 : io_file_flush(layer->file);
    if (r == 0 && !layer->read_only)
        r = image_failed(layer->image); /* what an earlier flush lost is not there now either */
    free((struct raw *)layer);
    return r < 0 ? error_sys(err, r, "flush a raw image") : 0;
}

static int raw_queue_create(struct layer *layer, struct image_queue *queue, struct layer_queue **ret_lq,
                            struct error *err)
{
    struct raw_queue *rq = calloc(1, sizeof(*rq));
    (void)layer;
    (void)queue;
    if (!rq)
        return error_sys(err, ENOMEM, "create a queue of a raw image");
    *ret_lq = &rq->base;
    return 0;
}

static void raw_queue_destroy(struct layer_queue *lq)
{
    free((struct raw_queue *)lq);
}

/* ---- requests ---- */

static void raw_done(struct io_op *op, int result)
{
    struct image_request *request = request_of(op);
    if (op->kind == IO_FLUSH && result < 0)
        image_fail(image_queue_image(request->queue), result);
    if (__builtin_expect(result == -EOPNOTSUPP || result == -EINVAL, 0) && op->kind == IO_DISCARD) {
        if (request->op == IMAGE_DISCARD) {
            result = 0; /* a hint that this file cannot take */
        } else {
            op->kind = IO_ZERO;
            io_submit(image_queue_loop(request->queue), op);
            return;
        }
    }
    layer_request_done(request, result);
}

/* Above a frozen layer's end the vector may be longer than the request (layer_submit_below): the surplus lies beyond the
 * end of the file and reads as the zeros that it has to hold. */
static uint64_t transfer_length(const struct layer *layer, const struct image_request *request)
{
    uint64_t sum = 0;
    if (__builtin_expect(layer->index == 0, 1))
        return request->length;
    for (unsigned i = 0; i < request->iovcnt; i++)
        sum += request->iov[i].iov_len;
    return sum;
}

static void raw_status(struct layer *layer, struct image_request *request)
{
    uint64_t offset = request->offset;
    uint64_t stop = offset + request->length;
    for (unsigned i = 0; i < STATUS_EXTENTS_MAX && offset < stop; i++) {
        bool data;
        uint64_t end;
        int r = io_file_extent(layer->file, offset, &data, &end);
        if (r < 0) {
            layer_request_done(request, r);
            return;
        }
        end = MIN(end, stop);
        if (!layer_status_add(request->status, end - offset,
                              IMAGE_EXTENT_ALLOCATED | (data ? 0 : (uint32_t)IMAGE_EXTENT_ZERO)))
            break;
        offset = end;
    }
    layer_request_done(request, 0);
}

static void raw_submit(struct layer_queue *lq, struct image_request *request)
{
    struct io_op *op = &request->io;
    op->file = lq->layer->file;
    op->offset = request->offset;
    op->length = request->length;
    op->done = raw_done;
    switch (request->op) {
    case IMAGE_READ:
        op->kind = IO_READ;
        op->iov = request->iov;
        op->iovcnt = request->iovcnt;
        op->length = transfer_length(lq->layer, request);
        break;
    case IMAGE_WRITE:
        op->kind = IO_WRITE;
        op->iov = request->iov;
        op->iovcnt = request->iovcnt;
        break;
    case IMAGE_WRITE_ZEROES:
        op->kind = request->flags & IMAGE_MAY_UNMAP ? IO_DISCARD : IO_ZERO;
        break;
    case IMAGE_DISCARD:
        op->kind = IO_DISCARD;
        break;
    case IMAGE_FLUSH:
        op->kind = IO_FLUSH;
        break;
    case IMAGE_STATUS:
        raw_status(lq->layer, request);
        return;
    }
    io_submit(image_queue_loop(lq->queue), op);
}

/* ---- resizing, creating, describing ---- */

static int raw_resize(struct layer *layer, uint64_t size, struct error *err)
{
    if (layer->file->block_device) {
        (void)error_set(err, EOPNOTSUPP, "a block device has the size that it has");
        (void)error_code(err, "resize-not-possible");
        return -EOPNOTSUPP;
    }
    int r = keep_length(layer->file, size, err);
    if (r < 0)
        return r;
    r = io_file_truncate(layer->file, size);
    if (r == 0) {
        r = io_file_flush(layer->file);
        /* The kernel tells of lost writes once: no later flush may say that they are there. */
        if (r < 0)
            image_fail(layer->image, r);
    }
    if (r < 0)
        return error_sys(err, r, "resize a raw image to %llu bytes", (unsigned long long)size);
    layer->size = size;
    return 0;
}

static int raw_freeze(struct layer *layer, struct error *err)
{
    int r = io_file_flush(layer->file);
    if (r == 0)
        return 0;
    image_fail(layer->image, r);
    return error_sys(err, r, "flush a raw image");
}

static int raw_reflink(struct layer *layer, int fd, struct error *err)
{
    int r = raw_freeze(layer, err); /* which a file with lost pages does not pass */
    if (r < 0)
        return r;
    r = io_file_reflink(layer->file, fd);
    if (r == -EOPNOTSUPP) {
        (void)error_set(err, EOPNOTSUPP, "the file system does not share blocks between files");
        (void)error_code(err, "reflink-not-possible");
        return -EOPNOTSUPP;
    }
    return r < 0 ? error_sys(err, r, "reflink a raw image") : 0;
}

static int raw_create(struct io_file *file, const struct image_create_options *options, struct error *err)
{
    uint64_t length;
    int r = io_file_length(file, &length);
    if (r < 0)
        return error_sys(err, r, "measure a raw image");
    if (file->block_device)
        return length >= options->size ? 0 : error_set(err, ENOSPC, "the device is smaller than the image");
    if (length != 0)
        return error_set(err, EEXIST, "the file for a new image must be empty");
    r = options->preallocate && options->size ? io_file_allocate(file, 0, options->size)
                                              : io_file_truncate(file, options->size);
    if (r == 0)
        r = io_file_flush(file);
    return r < 0 ? error_sys(err, r, "make a raw image of %llu bytes", (unsigned long long)options->size) : 0;
}

static int raw_probe(struct io_file *file, struct image_info *ret_info, struct error *err)
{
    int r = io_file_length(file, &ret_info->size);
    return r < 0 ? error_sys(err, r, "measure a raw image") : 0;
}

const struct layer_ops raw_layer_ops = {
    .name = "raw",
    .open = raw_open,
    .close = raw_close,
    .queue_create = raw_queue_create,
    .queue_destroy = raw_queue_destroy,
    .submit = raw_submit,
    .resize = raw_resize,
    .freeze = raw_freeze,
    .reflink = raw_reflink,
    .create = raw_create,
    .probe = raw_probe,
};
