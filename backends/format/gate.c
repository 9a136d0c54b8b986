// SPDX-License-Identifier: Apache-2.0
/*
 * The gate, grace periods, and posting to an image's loops.
 *
 * Requests in flight are counted by plain counters that only their loop's thread touches. So whoever needs to know
 * asks each queue on its own thread, by a posted task:
 *
 *   gate    The task closes the queue for new requests and reports once both counts are zero. When all queues have
 *           reported, the first owner in line has the image alone. Owners are the control thread (a drain) and single
 *           requests that must not run beside others (unaligned writes on direct files).
 *   grace   The task flips the queue's parity; requests started before are counted under the old one. The queue
 *           reports when the old count is zero; requests go on meanwhile. The next grace period begins after this one
 *           has ended, so the count that a flip makes current starts at zero.
 *
 * A task that is posted when its queue is destroyed finds the queue dead and frees it.
 */
#include <assert.h>
#include <errno.h>

#include "backends/format/core.h"
#include "common/cleanup.h"

static void gate_task_run(struct io_task *task);
static void grace_task_run(struct io_task *task);
static void exclusive_task_run(struct io_task *task);

#define queue_of(task, member) ((struct image_queue *)((char *)(task)-offsetof(struct image_queue, member)))

void gate_init(struct image *image)
{
    image->owners_tail = &image->owners;
}

/* ---- under image->lock ---- */

static void post_gate(struct image_queue *queue)
{
    if (queue->gate_posted)
        return;
    queue->gate_posted = true;
    io_loop_post(queue->loop, &queue->gate_task);
}

/* Every queue is closed and empty: the first owner has the image. */
static void grant(struct image *image)
{
    struct image_request *owner = image->owners;
    if (owner == &image->drain) {
        image->drain_granted = true;
        (void)pthread_cond_broadcast(&image->changed);
    } else {
        owner->queue->exclusive = owner;
        io_loop_post(owner->queue->loop, &owner->queue->exclusive_task);
    }
}

static void report_drained(struct image_queue *queue)
{
    struct image *image = queue->image;
    if (!image->gate_closed || queue->drained)
        return;
    queue->drained = true;
    if (--image->gate_waiting == 0)
        grant(image);
}

static void report_grace(struct image_queue *queue)
{
    struct image *image = queue->image;
    if (!queue->grace_pending)
        return;
    queue->grace_pending = false;
    if (--image->grace_waiting == 0)
        (void)pthread_cond_broadcast(&image->changed);
}

/* ---- the gate ---- */

void gate_enter(struct image *image, struct image_request *owner)
{
    LOCK_SCOPE(&image->lock);
    owner->next = NULL;
    *image->owners_tail = owner;
    image->owners_tail = &owner->next;
    if (image->gate_closed)
        return; /* its turn comes after the present owner's */
    image->gate_closed = true;
    image->gate_waiting = image->queue_count;
    for (unsigned i = 0; i < image->queue_count; i++) {
        image->queues[i]->drained = false;
        post_gate(image->queues[i]);
    }
    if (image->gate_waiting == 0)
        grant(image);
}

void gate_leave(struct image *image)
{
    LOCK_SCOPE(&image->lock);
    assert(image->gate_closed && image->gate_waiting == 0);
    image->owners = image->owners->next;
    if (image->owners) {
        grant(image);
        return;
    }
    image->owners_tail = &image->owners;
    image->gate_closed = false;
    for (unsigned i = 0; i < image->queue_count; i++)
        post_gate(image->queues[i]);
}

static void start_parked(struct image_queue *queue)
{
    while (queue->parked && !queue->gated) {
        struct image_request *request = queue->parked;
        queue->parked = request->next;
        if (!queue->parked)
            queue->parked_tail = &queue->parked;
        queue_start(queue, request);
    }
}

void gate_idle(struct image_queue *queue)
{
    struct image *image = queue->image;
    LOCK_SCOPE(&image->lock);
    if (queue->grace && queue->in_flight[!queue->parity] == 0) {
        queue->grace = false;
        report_grace(queue);
    }
    if (queue->closing && queue->in_flight[0] + queue->in_flight[1] == 0) {
        queue->closing = false;
        report_drained(queue);
    }
    queue->waited = queue->grace || queue->closing;
}

static bool any_posted(const struct image_queue *queue)
{
    return queue->gate_posted || queue->grace_posted || queue->prepare_posted;
}

/* A task of a queue that was destroyed: the last one frees it. The image may be gone, and nobody else knows the queue. */
bool gate_task_of_dead(struct image_queue *queue, bool *posted)
{
    if (!queue->dead)
        return false;
    *posted = false;
    if (!any_posted(queue))
        queue_free(queue);
    return true;
}

static void gate_task_run(struct io_task *task)
{
    struct image_queue *queue = queue_of(task, gate_task);
    struct image *image = queue->image;
    if (gate_task_of_dead(queue, &queue->gate_posted))
        return;
    (void)pthread_mutex_lock(&image->lock);
    queue->gate_posted = false;
    queue->gated = image->gate_closed;
    (void)pthread_mutex_unlock(&image->lock);
    queue->closing = queue->gated;
    queue->waited = queue->grace || queue->closing;
    if (queue->gated)
        gate_idle(queue);
    else
        start_parked(queue);
}

/* The image is this request's alone; the gate stays closed for all others. */
static void exclusive_task_run(struct io_task *task)
{
    struct image_queue *queue = queue_of(task, exclusive_task);
    struct image_request *request = queue->exclusive;
    queue->exclusive = NULL;
    queue_issue(queue, request);
}

void image_drain_begin(struct image *image)
{
    if (image->drains++)
        return;
    gate_enter(image, &image->drain);
    LOCK_SCOPE(&image->lock);
    while (!image->drain_granted)
        (void)pthread_cond_wait(&image->changed, &image->lock);
    image->drain_granted = false;
}

void image_drain_end(struct image *image)
{
    assert(image->drains);
    if (--image->drains == 0)
        gate_leave(image);
}

/* ---- grace periods ---- */

static void grace_task_run(struct io_task *task)
{
    struct image_queue *queue = queue_of(task, grace_task);
    struct image *image = queue->image;
    if (gate_task_of_dead(queue, &queue->grace_posted))
        return;
    (void)pthread_mutex_lock(&image->lock);
    queue->grace_posted = false;
    (void)pthread_mutex_unlock(&image->lock);
    assert(queue->in_flight[!queue->parity] == 0);
    queue->parity = !queue->parity;
    queue->grace = true;
    queue->waited = true;
    gate_idle(queue);
}

void image_grace(struct image *image)
{
    LOCK_SCOPE(&image->grace_lock);
    (void)pthread_mutex_lock(&image->lock);
    image->grace_waiting = image->queue_count;
    for (unsigned i = 0; i < image->queue_count; i++) {
        struct image_queue *queue = image->queues[i];
        queue->grace_pending = true;
        queue->grace_posted = true;
        io_loop_post(queue->loop, &queue->grace_task);
    }
    while (image->grace_waiting)
        (void)pthread_cond_wait(&image->changed, &image->lock);
    (void)pthread_mutex_unlock(&image->lock);
}

/* ---- queues ---- */

int gate_add_queue(struct image_queue *queue)
{
    struct image *image = queue->image;
    queue->gate_task.run = gate_task_run;
    queue->grace_task.run = grace_task_run;
    queue->exclusive_task.run = exclusive_task_run;
    queue->parked_tail = &queue->parked;
    LOCK_SCOPE(&image->lock);
    if (image->queue_count == IMAGE_QUEUES_MAX)
        return -EMFILE;
    image->queues[image->queue_count++] = queue;
    queue->gated = image->gate_closed;
    queue->drained = true;
    return 0;
}

void gate_remove_queue(struct image_queue *queue)
{
    struct image *image = queue->image;
    (void)pthread_mutex_lock(&image->lock);
    for (unsigned i = 0; i < image->queue_count; i++) {
        if (image->queues[i] == queue)
            image->queues[i] = image->queues[--image->queue_count];
    }
    report_grace(queue);
    report_drained(queue);
    chain_report_prepared(queue, 0);
    queue->dead = true;
    bool last = !any_posted(queue);
    (void)pthread_mutex_unlock(&image->lock);
    if (last)
        queue_free(queue);
}

bool image_post(struct image *image, struct io_task *task)
{
    LOCK_SCOPE(&image->lock);
    if (image->queue_count == 0)
        return false;
    io_loop_post(image->queues[image->next_post++ % image->queue_count]->loop, task);
    return true;
}
