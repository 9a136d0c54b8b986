// SPDX-License-Identifier: Apache-2.0
/*
 * Queues: the way of a request from image_submit to its done(). All on the loop's thread, nothing blocks or allocates.
 *
 * The usual request is checked, counted and handed to the top layer. Writes that do not keep the alignment of a direct
 * file are read-modify-write below, so they own the image while they run (gate.c); everything else unaligned the files
 * bounce without harm. FUA is a flush of our own after the write.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "backends/format/core.h"
#include "common/checked.h"

static void queue_done(struct image_request *request, int result);

/* ---- submitting ---- */

static bool modifies(const struct image_request *request)
{
    return request->op == IMAGE_WRITE || request->op == IMAGE_WRITE_ZEROES || request->op == IMAGE_DISCARD;
}

/* What can be said without the layers: < 0 refused, 0 go on, 1 done already. */
static int check(const struct image *image, const struct image_request *request)
{
    if (request->op != IMAGE_FLUSH && unlikely(!range_within(request->offset, request->length, image->size)))
        return -EINVAL;
    switch (request->op) {
    case IMAGE_READ:
        return request->length == 0;
    case IMAGE_WRITE:
    case IMAGE_WRITE_ZEROES:
    case IMAGE_DISCARD:
        if (unlikely(image->read_only))
            return -EROFS;
        if (unlikely(image_failed(image)))
            return image_failed(image);
        return request->length == 0;
    case IMAGE_FLUSH:
        return unlikely(image_failed(image)) ? image_failed(image) : image->read_only;
    case IMAGE_STATUS:
        if (request->length == 0 || request->status->max == 0)
            return -EINVAL;
        request->status->count = 0;
        return 0;
    default:
        return -EOPNOTSUPP;
    }
}

static bool must_be_alone(const struct image *image, const struct image_request *request)
{
    return !is_aligned(request->offset | request->length, image->alignment) &&
           (request->op == IMAGE_WRITE || request->op == IMAGE_WRITE_ZEROES);
}

void queue_issue(struct image_queue *queue, struct image_request *request)
{
    request->epoch = queue->parity;
    queue->in_flight[queue->parity]++;
    if (unlikely(request->op == IMAGE_FLUSH))
        flush_submit(request);
    else
        queue->top->layer->ops->submit(queue->top, request);
}

void queue_start(struct image_queue *queue, struct image_request *request)
{
    int r = check(queue->image, request);
    if (unlikely(r != 0)) {
        request->done(request, MIN(r, 0));
        return;
    }
    request->stage = 0;
    request->chain = queue_done;
    if (unlikely(must_be_alone(queue->image, request))) {
        request->stage = STAGE_EXCLUSIVE;
        gate_enter(queue->image, request);
    } else {
        queue_issue(queue, request);
    }
}

void image_submit(struct image_queue *queue, struct image_request *request)
{
    request->queue = queue;
    if (likely(!queue->gated)) {
        queue_start(queue, request);
        return;
    }
    request->next = NULL;
    *queue->parked_tail = request;
    queue->parked_tail = &request->next;
}

/* ---- completing ---- */

void queue_finish(struct image_request *request, int result)
{
    struct image_queue *queue = request->queue;
    if (request->stage & STAGE_FLUSHING)
        request->op = (enum image_op)(request->stage >> STAGE_OP_SHIFT);
    if (unlikely(request->stage & STAGE_EXCLUSIVE))
        gate_leave(queue->image);
    /* The count first: done() may be the one that destroys the queue. */
    if (--queue->in_flight[request->epoch] == 0 && unlikely(queue->waited))
        gate_idle(queue);
    request->done(request, result);
}

/* A layer has ended the request, or its flush. */
static void queue_done(struct image_request *request, int result)
{
    if (unlikely(request->op == IMAGE_FLUSH)) {
        flush_done(request, result);
    } else if (unlikely(request->flags & IMAGE_FUA) && result == 0 && modifies(request)) {
        request->stage |= STAGE_FLUSHING | (uint32_t)request->op << STAGE_OP_SHIFT;
        request->op = IMAGE_FLUSH;
        flush_submit(request);
    } else {
        queue_finish(request, result);
    }
}

/* ---- life ---- */

void queue_free(struct image_queue *queue)
{
    free(queue->lqs);
    free(queue->next);
    free(queue);
}

int queue_add_layer(struct image_queue *queue, struct layer *layer, struct layer_queue *below,
                    struct layer_queue **ret_lq, struct error *err)
{
    struct layer_queue *lq;
    int r = layer->ops->queue_create(layer, queue, &lq, err);
    if (r < 0)
        return r;
    lq->layer = layer;
    lq->queue = queue;
    lq->below = below;
    io_loop_register_file(queue->loop, layer->file);
    *ret_lq = lq;
    return 0;
}

void queue_remove_layer(struct image_queue *queue, struct layer_queue *lq)
{
    struct io_file *file = lq->layer->file;
    lq->layer->ops->queue_destroy(lq);
    io_loop_unregister_file(queue->loop, file);
}

static void destroy_layer_queues(struct image_queue *queue)
{
    chain_drop_next(queue);
    for (size_t i = 0; i < queue->image->count; i++) {
        if (queue->lqs[i])
            queue_remove_layer(queue, queue->lqs[i]);
    }
}

static int create_layer_queues(struct image_queue *queue, struct error *err)
{
    struct image *image = queue->image;
    for (size_t i = image->count; i-- > 0;) {
        struct layer_queue *below = i + 1 < image->count ? queue->lqs[i + 1] : NULL;
        int r = queue_add_layer(queue, image->layers[i], below, &queue->lqs[i], err);
        if (r < 0)
            return r;
    }
    queue->top = queue->lqs[0];
    return chain_make_next(queue, err);
}

int image_queue_create(struct image *image, struct io_loop *loop, struct image_queue **ret_queue, struct error *err)
{
    struct image_queue *queue = calloc(1, sizeof(*queue));
    if (queue) {
        queue->lqs = calloc(IMAGE_LAYERS_MAX, sizeof(struct layer_queue *));
        queue->next = calloc(IMAGE_LAYERS_MAX, sizeof(struct layer_queue *));
    }
    if (!queue || !queue->lqs || !queue->next) {
        if (queue)
            queue_free(queue);
        return error_sys(err, ENOMEM, "create an image queue");
    }
    queue->image = image;
    queue->loop = loop;
    flush_queue_init(queue);
    chain_queue_init(queue);
    chain_builder_enter(image);
    int r = create_layer_queues(queue, err);
    if (r == 0) {
        r = gate_add_queue(queue);
        if (r < 0)
            r = error_set(err, r, "an image has at most %u queues", IMAGE_QUEUES_MAX);
    }
    if (r < 0) {
        destroy_layer_queues(queue);
        queue_free(queue);
        chain_builder_leave(image);
        return r;
    }
    chain_builder_leave(image);
    *ret_queue = queue;
    return 0;
}

struct image_queue *image_queue_destroy(struct image_queue *queue)
{
    if (!queue)
        return NULL;
    assert(queue->in_flight[0] + queue->in_flight[1] == 0 && !queue->parked && !queue->exclusive);
    struct image *image = queue->image;
    queue->leaving = true;
    chain_builder_enter(image);
    destroy_layer_queues(queue);
    gate_remove_queue(queue);
    chain_builder_leave(image);
    return NULL;
}

struct io_loop *image_queue_loop(const struct image_queue *queue)
{
    return queue->loop;
}

struct image *image_queue_image(const struct image_queue *queue)
{
    return queue->image;
}
