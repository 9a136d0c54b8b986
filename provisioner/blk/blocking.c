// SPDX-License-Identifier: Apache-2.0
#include "provisioner/blk/blocking.h"

#include <errno.h>
#include <stddef.h>

#include "common/cleanup.h"

struct blocking {
    struct io_loop *loop;
    struct image_queue *queue;
};

struct waiting {
    struct image_request request;
    bool done;
    int result;
};

static void waiting_done(struct image_request *request, int result)
{
    struct waiting *w = (struct waiting *)((char *)request - offsetof(struct waiting, request));
    w->result = result;
    w->done = true;
}

static int submit_and_wait(struct blocking *b, struct waiting *w)
{
    w->request.done = waiting_done;
    image_submit(b->queue, &w->request);
    while (!w->done) {
        int r = io_loop_turn(b->loop, -1);
        if (r < 0 && r != -EINTR)
            return r;
    }
    return w->result;
}

int blocking_create(struct image *image, struct blocking **ret_blocking, struct error *err)
{
    struct blocking *b = calloc(1, sizeof(*b));
    if (!b)
        return error_sys(err, ENOMEM, "make a queue");
    struct io_loop_options options = {.depth = 8};
    int r = io_loop_create(&options, &b->loop, err);
    if (r == 0)
        r = image_queue_create(image, b->loop, &b->queue, err);
    if (r < 0) {
        (void)blocking_destroy(b);
        return r;
    }
    *ret_blocking = b;
    return 0;
}

struct blocking *blocking_destroy(struct blocking *b)
{
    if (!b)
        return NULL;
    if (b->queue)
        b->queue = image_queue_destroy(b->queue);
    b->loop = io_loop_destroy(b->loop);
    free(b);
    return NULL;
}

int blocking_read(struct blocking *b, void *buffer, size_t length, uint64_t offset)
{
    struct iovec iov = {.iov_base = buffer, .iov_len = length};
    struct waiting w = {
        .request = {.op = IMAGE_READ, .offset = offset, .length = length, .iov = &iov, .iovcnt = 1},
    };
    return submit_and_wait(b, &w);
}

int blocking_write(struct blocking *b, const void *buffer, size_t length, uint64_t offset)
{
    struct iovec iov = {.iov_base = (void *)buffer, .iov_len = length};
    struct waiting w = {
        .request = {.op = IMAGE_WRITE, .offset = offset, .length = length, .iov = &iov, .iovcnt = 1},
    };
    return submit_and_wait(b, &w);
}

int blocking_flush(struct blocking *b)
{
    struct waiting w = {.request = {.op = IMAGE_FLUSH}};
    return submit_and_wait(b, &w);
}

int blocking_zeroes(struct blocking *b, uint64_t offset, uint64_t length)
{
    struct waiting w = {
        .request = {.op = IMAGE_WRITE_ZEROES, .flags = IMAGE_MAY_UNMAP, .offset = offset, .length = length},
    };
    return submit_and_wait(b, &w);
}

int blocking_status(struct blocking *b, uint64_t offset, uint64_t length, struct image_extent *ret_extent)
{
    struct image_status status = {.extents = ret_extent, .max = 1};
    return blocking_map(b, offset, length, 0, &status);
}

int blocking_map(struct blocking *b, uint64_t offset, uint64_t length, uint32_t layers, struct image_status *status)
{
    struct waiting w = {
        .request = {.op = IMAGE_STATUS, .offset = offset, .length = length, .layers = layers, .status = status},
    };
    return submit_and_wait(b, &w);
}

int blocking_flush_once(struct image *image, struct error *err)
{
    struct blocking *b = NULL;
    int r = blocking_create(image, &b, err);
    if (r < 0)
        return r;
    r = blocking_flush(b);
    (void)blocking_destroy(b);
    return r < 0 ? error_sys(err, r, "flush the image") : 0;
}
