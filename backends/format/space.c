// SPDX-License-Identifier: Apache-2.0
/*
 * Waiting for space. A request that ended with -ENOSPC can be done again from its start: a failed write leaves its range
 * old, new or mixed, and a failed flush that the layer says nothing of to image_fail keeps all that it had to write. So,
 * where the policy is to wait, it is not answered but put aside, and submitted anew from time to time until it passes.
 *
 * While it is aside it does not count as in flight and owns nothing. So drains, resizes, snapshots and grace periods pass
 * it by, and so do the clusters that a grace period sets free.
 *
 * Where the policy is to fail, it is put aside all the same while its layer still gives freed space back (ops->space_coming),
 * for SPACE_TRIES_MAX times at most.
 *
 * Loop's thread, but for the policy and the counters, which are atomic.
 */
#include <errno.h>

#include "backends/format/core.h"
#include "common/checked.h"

#define SPACE_DELAY_MIN (UINT64_C(5) * 1000 * 1000) /* ns, doubled while nothing passes */
#define SPACE_DELAY_MAX (UINT64_C(500) * 1000 * 1000)
#define SPACE_TRIES_MAX 8u

#define queue_of(timer) ((struct image_queue *)((char *)(timer)-offsetof(struct image_queue, space_timer)))

static void try_again(struct io_timer *timer)
{
    struct image_queue *queue = queue_of(timer);
    struct image_request *request = queue->starved;
    queue->starved = NULL;
    queue->starved_tail = &queue->starved;
    queue->space_delay = MIN(queue->space_delay * 2, SPACE_DELAY_MAX);
    while (request) {
        struct image_request *next = request->next;
        if (request->flags & IMAGE_NO_WAIT) {
            space_served(request);
            request->done(request, -ENOSPC);
        } else {
            queue_submit(queue, request);
        }
        request = next;
    }
}

void space_queue_init(struct image_queue *queue)
{
    queue->starved_tail = &queue->starved;
    queue->space_delay = SPACE_DELAY_MIN;
    queue->space_timer.fire = try_again;
}

static bool may_wait(const struct image_request *request)
{
    const struct image *image = request->queue->image;
    const struct layer *top = request->queue->top->layer;
    if (request->op == IMAGE_READ || request->op == IMAGE_STATUS || image_failed(image))
        return false;
    if (request->queue->refuses_wait || (request->flags & IMAGE_NO_WAIT))
        return false;
    if (atomic_load_explicit(&image->wait_for_space, memory_order_relaxed))
        return true;
    return request->starved < SPACE_TRIES_MAX && top->ops->space_coming && top->ops->space_coming(top);
}

bool space_wait(struct image_request *request)
{
    struct image_queue *queue = request->queue;
    struct image *image = queue->image;
    if (!may_wait(request)) {
        atomic_fetch_add_explicit(&image->space_refused, 1, memory_order_relaxed);
        return false;
    }
    if (request->starved++ == 0)
        atomic_fetch_add_explicit(&image->space_waiting, 1, memory_order_relaxed);
    request->next = NULL;
    *queue->starved_tail = request;
    queue->starved_tail = &request->next;
    if (!queue->space_timer.armed)
        io_timer_arm(queue->loop, &queue->space_timer, queue->space_delay);
    return true;
}

void space_served(struct image_request *request)
{
    request->starved = 0;
    request->queue->space_delay = SPACE_DELAY_MIN;
    atomic_fetch_sub_explicit(&request->queue->image->space_waiting, 1, memory_order_relaxed);
}

void image_queue_refuse_wait(struct image_queue *queue, bool refuse)
{
    queue->refuses_wait = refuse;
    if (!refuse || !queue->starved)
        return;
    io_timer_cancel(queue->loop, &queue->space_timer);
    try_again(&queue->space_timer);
}

void image_wait_for_space(struct image *image, bool wait)
{
    atomic_store_explicit(&image->wait_for_space, wait, memory_order_relaxed);
}

void image_condition(const struct image *image, struct image_condition *ret_condition)
{
    *ret_condition = (struct image_condition){
        .failed = image_failed(image),
        .waiting = atomic_load_explicit(&image->space_waiting, memory_order_relaxed),
        .refused = atomic_load_explicit(&image->space_refused, memory_order_relaxed),
    };
}
