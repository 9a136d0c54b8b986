// SPDX-License-Identifier: Apache-2.0
/* The model's target for images: a loop and a queue for each thread. */
#include <errno.h>
#include <stdlib.h>

#include "model.h"

struct image_thread {
    struct io_loop *loop;
    struct image_queue *queue;
};

static int image_begin(void *context, unsigned thread, void **ret_queue)
{
    struct image_thread *t = calloc(1, sizeof(*t));
    struct io_loop_options options = {.depth = 64};
    (void)thread;
    if (!t)
        return -ENOMEM;
    int r = io_loop_create(&options, &t->loop, NULL);
    if (r == 0)
        r = image_queue_create(context, t->loop, &t->queue, NULL);
    if (r < 0) {
        (void)io_loop_destroy(t->loop);
        free(t);
        return r;
    }
    *ret_queue = t;
    return 0;
}

static void image_done(struct image_request *request, int result)
{
    model_io_done((struct model_io *)((char *)request - offsetof(struct model_io, request)), result);
}

static void image_target_submit(void *queue, struct model_io *io)
{
    struct image_thread *t = queue;
    io->request = (struct image_request){
        .op = io->op,
        .flags = io->flags,
        .offset = io->offset,
        .length = io->length,
        .iov = io->iov,
        .iovcnt = io->iovcnt,
        .done = image_done,
    };
    image_submit(t->queue, &io->request);
}

static int image_wait(void *queue)
{
    struct image_thread *t = queue;
    int r = io_loop_turn(t->loop, 1000);
    return r < 0 ? r : 0;
}

static void image_end(void *queue)
{
    struct image_thread *t = queue;
    (void)image_queue_destroy(t->queue);
    (void)io_loop_destroy(t->loop);
    free(t);
}

const struct model_target model_image_target = {
    .begin = image_begin,
    .submit = image_target_submit,
    .wait = image_wait,
    .end = image_end,
};
