// SPDX-License-Identifier: Apache-2.0
/*
 * Flushes of one image run one at a time. The kernel reports a write-back error to one fsync only: were two under way,
 * the other could say success for data that were lost. Those that come meanwhile wait together and share the next one,
 * which covers them all because it begins after they came; so many small flushes also cost few.
 *
 * The one that is issued leads its group; each request ends on its own queue's loop. A failed flush fails the image
 * first, then everybody who waited.
 */
#include "backends/format/core.h"
#include "common/cleanup.h"

static void flush_task_run(struct io_task *task);

void flush_init(struct image *image)
{
    image->flush_waiting_tail = &image->flush_waiting;
}

void flush_queue_init(struct image_queue *queue)
{
    queue->flush_task.run = flush_task_run;
}

static void issue(struct image_request *request)
{
    struct layer_queue *top = request->queue->top;
    top->layer->ops->submit(top, request);
}

void flush_submit(struct image_request *request)
{
    struct image *image = request->queue->image;
    (void)pthread_mutex_lock(&image->lock);
    bool wait = image->flushing;
    if (wait) {
        request->next = NULL;
        *image->flush_waiting_tail = request;
        image->flush_waiting_tail = &request->next;
    }
    image->flushing = true;
    (void)pthread_mutex_unlock(&image->lock);
    if (!wait)
        issue(request);
}

/* Under lock. */
static void give_to_queue(struct image_request *request)
{
    struct image_queue *queue = request->queue;
    request->next = queue->flush_ready;
    queue->flush_ready = request;
    if (!queue->flush_posted) {
        queue->flush_posted = true;
        io_loop_post(queue->loop, &queue->flush_task);
    }
}

void flush_done(struct image_request *request, int result)
{
    struct image *image = request->queue->image;
    /* A layer that found no space for its metadata and keeps it has not failed. */
    if (result < 0 && result != -ENOSPC)
        image_fail(image, result);
    if (image_failed(image))
        result = image_failed(image);

    (void)pthread_mutex_lock(&image->lock);
    for (struct image_request *other = image->flush_group, *next; other; other = next) {
        next = other->next;
        other->result = result;
        give_to_queue(other);
    }
    struct image_request *leader = image->flush_waiting;
    image->flush_group = leader ? leader->next : NULL;
    image->flush_waiting = NULL;
    image->flush_waiting_tail = &image->flush_waiting;
    image->flushing = leader != NULL;
    if (leader) {
        leader->stage |= STAGE_LEADING;
        give_to_queue(leader);
    }
    (void)pthread_mutex_unlock(&image->lock);
    queue_finish(request, result);
}

static void flush_task_run(struct io_task *task)
{
    struct image_queue *queue = (struct image_queue *)((char *)task - offsetof(struct image_queue, flush_task));
    (void)pthread_mutex_lock(&queue->image->lock);
    struct image_request *request = queue->flush_ready;
    queue->flush_ready = NULL;
    queue->flush_posted = false;
    (void)pthread_mutex_unlock(&queue->image->lock);
    while (request) {
        struct image_request *next = request->next;
        if (request->stage & STAGE_LEADING) {
            request->stage &= ~(uint32_t)STAGE_LEADING;
            issue(request);
        } else {
            queue_finish(request, request->result);
        }
        request = next;
    }
}
