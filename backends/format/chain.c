// SPDX-License-Identifier: Apache-2.0
/*
 * Changing the chain of an open image while queues serve it: every queue makes its parts of the layers to come on its own loop
 * (`next`, which no request sees), then, drained, pointers move, then what the queues have in `next` is undone.
 *
 * Queues come and go meanwhile on their own threads. Whoever makes or ends one is a builder from before its first look at
 * the chain to after its last; the chain and what is to come change only while there are none. Builders never wait for a
 * change, so that a loop which has one queue can get or lose another.
 */
#include <stddef.h>

#include "backends/format/core.h"
#include "common/cleanup.h"

/* ---- builders -------------------------------------------------------------------------------------------------- */

void chain_builder_enter(struct image *image)
{
    LOCK_SCOPE(&image->lock);
    image->builders++;
}

void chain_builder_leave(struct image *image)
{
    LOCK_SCOPE(&image->lock);
    if (--image->builders == 0)
        (void)pthread_cond_broadcast(&image->changed);
}

void chain_wait_for_builders(struct image *image)
{
    while (image->builders)
        (void)pthread_cond_wait(&image->changed, &image->lock);
}

/* ---- the queues' parts of the new layer ------------------------------------------------------------------------ */

void chain_report_prepared(struct image_queue *queue, int result)
{
    struct image *image = queue->image;
    if (!queue->prepare_pending)
        return;
    queue->prepare_pending = false;
    if (result < 0 && image->prepare_result == 0)
        image->prepare_result = result;
    if (--image->prepare_waiting == 0)
        (void)pthread_cond_broadcast(&image->changed);
}

void chain_drop_next(struct image_queue *queue)
{
    for (size_t i = 0; i < queue->next_count; i++) {
        if (queue->next[i])
            queue_remove_layer(queue, queue->next[i]);
        queue->next[i] = NULL;
    }
    queue->next_count = 0;
}

int chain_make_next(struct image_queue *queue, struct error *err)
{
    const struct image *image = queue->image;
    size_t count = image->incoming_count;
    queue->next_count = count;
    for (size_t i = count; i-- > 0;) {
        struct layer *layer = image->incoming[i];
        struct layer_queue *below = i + 1 < count ? queue->next[i + 1] : layer->below ? queue->top : NULL;
        int r = queue_add_layer(queue, layer, below, &queue->next[i], err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Make `next` what image->incoming says, which stays until this queue has reported. */
static void prepare_task_run(struct io_task *task)
{
    struct image_queue *queue = (struct image_queue *)((char *)task - offsetof(struct image_queue, prepare_task));
    if (gate_task_of_dead(queue, &queue->prepare_posted))
        return;
    struct image *image = queue->image;
    (void)pthread_mutex_lock(&image->lock);
    bool make = image->incoming_count > 0;
    (void)pthread_mutex_unlock(&image->lock);
    int r = 0;
    if (!queue->leaving && !make)
        chain_drop_next(queue);
    else if (!queue->leaving)
        r = chain_make_next(queue, NULL);
    LOCK_SCOPE(&image->lock);
    queue->prepare_posted = false;
    chain_report_prepared(queue, r);
}

void chain_queue_init(struct image_queue *queue)
{
    queue->prepare_task.run = prepare_task_run;
}

int chain_prepare(struct image *image, struct layer **layers, size_t count)
{
    LOCK_SCOPE(&image->lock);
    chain_wait_for_builders(image);
    image->incoming = layers;
    image->incoming_count = count;
    image->prepare_result = 0;
    image->prepare_waiting = image->queue_count;
    for (unsigned i = 0; i < image->queue_count; i++) {
        struct image_queue *queue = image->queues[i];
        queue->prepare_pending = true;
        queue->prepare_posted = true;
        io_loop_post(queue->loop, &queue->prepare_task);
    }
    while (image->prepare_waiting)
        (void)pthread_cond_wait(&image->changed, &image->lock);
    return image->prepare_result;
}
