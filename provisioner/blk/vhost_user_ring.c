// SPDX-License-Identifier: Apache-2.0
// A ring at work. The order of a turn: completions fill used entries, then the hook publishes them by one store and
// at most one notification, then takes what is available; the loop submits all of it at once and sleeps.
#include "provisioner/blk/vhost_user_ring.h"

#include <errno.h>
#include <linux/virtio_blk.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/cleanup.h"

struct ring_slot {
    struct image_request request; /* first: done() casts it back */
    struct vhost_user_ring *ring;
    struct ring_slot *batch_next;
    uint8_t *status;  // in guest memory
    uint32_t written; // for the used entry
    uint16_t head;
    bool busy; // from taken to published
};

static void signal_fd(int fd)
{
    const uint64_t one = 1;
    // A full eventfd is a pending notification; nothing is lost.
    if (fd >= 0 && write(fd, &one, sizeof(one)) < 0)
        return;
}

// The guest broke the ring's rules: serve it no more until it is set up anew. Requests in flight still finish.
static void ring_break(struct vhost_user_ring *ring)
{
    ring->active = false;
    counter_add(&ring->thread->counters.errors, 1);
    signal_fd(ring->error_fd);
}

static void slot_finish(struct ring_slot *slot, uint8_t status)
{
    struct vhost_user_ring *ring = slot->ring;
    __atomic_store_n(slot->status, status, __ATOMIC_RELAXED);
    virtqueue_push(&ring->queue, slot->head, slot->written);
    inflight_batch(&ring->inflight, slot->head);
    slot->batch_next = ring->batch;
    ring->batch = slot;
    ring->in_flight--;
}

static void count(struct vhost_user_counters *counters, const struct image_request *request, int result)
{
    if (result < 0) {
        counter_add(&counters->errors, 1);
        return;
    }
    switch (request->op) {
    case IMAGE_READ:
        counter_add(&counters->reads, 1);
        counter_add(&counters->read_bytes, request->length);
        break;
    case IMAGE_WRITE:
        counter_add(&counters->writes, 1);
        counter_add(&counters->write_bytes, request->length);
        break;
    case IMAGE_FLUSH:
        counter_add(&counters->flushes, 1);
        break;
    default:
        counter_add(&counters->discards, 1);
        break;
    }
}

static void request_done(struct image_request *request, int result)
{
    struct ring_slot *slot = (struct ring_slot *)request;
    count(&slot->ring->thread->counters, request, result);
    slot_finish(slot, virtio_blk_status(result));
}

static void ring_handle(struct vhost_user_ring *ring, uint16_t head)
{
    struct ring_slot *slot = &ring->slots[head];
    struct virtqueue_chain chain = {.iov = ring->iovs + (size_t)head * VIRTQUEUE_IOV_MAX};
    uint8_t answer;
    if (slot->busy || virtqueue_read(&ring->queue, head, &chain) < 0) {
        ring_break(ring);
        return;
    }
    uint32_t written = (uint32_t)MIN(chain.writable_bytes, UINT32_MAX);
    int r = virtio_blk_translate(&ring->rules, &chain, &slot->request, &slot->status, &answer);
    if (r < 0) {
        ring_break(ring);
        return;
    }
    slot->written = written;
    slot->busy = true;
    ring->in_flight++;
    inflight_take(&ring->inflight, head);
    if (r == 0) {
        if (answer != VIRTIO_BLK_S_OK)
            counter_add(&ring->thread->counters.errors, 1);
        slot_finish(slot, answer);
        return;
    }
    slot->request.done = request_done;
    image_submit(ring->thread->queue, &slot->request);
}

static void ring_publish(struct vhost_user_ring *ring)
{
    if (!ring->batch)
        return;
    bool notify = virtqueue_publish(&ring->queue);
    for (struct ring_slot *slot = ring->batch; slot; slot = slot->batch_next) {
        inflight_clear(&ring->inflight, slot->head);
        slot->busy = false;
    }
    ring->batch = NULL;
    inflight_settle(&ring->inflight, ring->queue.used_published);
    if (notify)
        signal_fd(ring->call_fd);
}

// Take all that is available, but not more than one queue full in a turn, or a guest whose requests complete at once
// would keep the thread from its other rings. True when there may be more.
static bool ring_take(struct vhost_user_ring *ring)
{
    unsigned budget = ring->queue.size;
    ring->rules.write_through = !(ring->rules.features & (UINT64_C(1) << VIRTIO_BLK_F_FLUSH)) ||
                                !__atomic_load_n(ring->write_cache, __ATOMIC_RELAXED);
    do {
        uint16_t head;
        int r = 0;
        while (ring->active && budget && (r = virtqueue_next(&ring->queue, &head)) > 0) {
            budget--;
            ring_handle(ring, head);
        }
        if (r < 0)
            ring_break(ring);
        ring_publish(ring);
        if (!ring->active)
            return false;
        if (!budget)
            return true;
    } while (virtqueue_want_kick(&ring->queue));
    return false;
}

static bool ring_turn(struct io_hook *hook)
{
    struct vhost_user_ring *ring = (void *)((char *)hook - offsetof(struct vhost_user_ring, hook));
    bool more = false;
    ring_publish(ring);
    if (ring->active)
        more = ring_take(ring);
    if (ring->stopping && !ring->in_flight) {
        struct vhost_user_call *call = ring->stopping;
        ring->stopping = NULL;
        image_queue_refuse_wait(ring->thread->queue, false);
        vhost_user_call_done(call, 0);
    }
    return more;
}

// A kick needs no work here: the hook looks at the ring before the loop sleeps again. Watches are edge-triggered and
// tell of every write to the eventfd, so it is never read.
static void kick_ready(struct io_watch *watch, uint32_t revents)
{
    struct vhost_user_ring *ring = (void *)((char *)watch - offsetof(struct vhost_user_ring, kick));
    if (revents & (POLLERR | POLLHUP | POLLNVAL))
        io_watch_remove(ring->thread->loop, watch);
}

// ---- control thread --------------------------------------------------------------------------------------------

static void create_call(struct vhost_user_call *call)
{
    struct vhost_user_ring *ring = call->object;
    io_loop_add_hook(ring->thread->loop, &ring->hook);
    vhost_user_call_done(call, 0);
}

void vhost_user_ring_create(struct vhost_user_ring *ring, unsigned index, struct vhost_user_thread *thread)
{
    *ring = (struct vhost_user_ring){
        .index = index,
        .thread = thread,
        .kick_fd = -1,
        .call_fd = -1,
        .error_fd = -1,
        .hook = {.before_wait = ring_turn},
    };
    (void)vhost_user_thread_call(thread, create_call, ring);
}

static void start_call(struct vhost_user_call *call)
{
    struct vhost_user_ring *ring = call->object;
    ring->kick = (struct io_watch){.fd = ring->kick_fd, .events = POLLIN, .ready = kick_ready};
    int r = io_watch_add(ring->thread->loop, &ring->kick);
    if (r == 0) {
        ring->active = true;
        for (unsigned i = 0; i < ring->resumed && ring->active; i++)
            ring_handle(ring, ring->resume[i]);
        // What the predecessor published last may never have been told.
        signal_fd(ring->call_fd);
    }
    vhost_user_call_done(call, r);
}

static void ring_free(struct vhost_user_ring *ring)
{
    free(steal_ptr(&ring->slots));
    free(steal_ptr(&ring->iovs));
    free(steal_ptr(&ring->resume));
    ring->resumed = 0;
}

static int ring_allocate(struct vhost_user_ring *ring)
{
    // Pages of the vectors that no request of the guest's usual size reaches are never touched.
    ring->slots = calloc(ring->size, sizeof(*ring->slots));
    ring->iovs = calloc((size_t)ring->size * VIRTQUEUE_IOV_MAX, sizeof(*ring->iovs));
    ring->resume = calloc(ring->size, sizeof(*ring->resume));
    if (!ring->slots || !ring->iovs || !ring->resume)
        return -ENOMEM;
    for (uint16_t i = 0; i < ring->size; i++) {
        ring->slots[i].ring = ring;
        ring->slots[i].head = i;
    }
    return 0;
}

static int ring_prepare(struct vhost_user_ring *ring, const struct vhost_user_ring_context *context)
{
    int r = virtqueue_start(&ring->queue, context->memory, ring->size, &ring->addresses, context->features, ring->base);
    if (r < 0)
        return r;
    r = ring_allocate(ring);
    if (r < 0)
        return r;
    uint16_t used = virtqueue_guest_used(&ring->queue);
    r = inflight_queue_attach(&ring->inflight, context->inflight, ring->index, ring->size, used, ring->resume,
                              &ring->resumed);
    if (r < 0)
        return r;
    // All that was taken is either used or in flight; after a crash the front-end knows no better base.
    if (ring->inflight.shared)
        ring->queue.last_available = (uint16_t)(ring->queue.used_published + ring->resumed);
    ring->rules = (struct virtio_blk_rules){.volume = context->volume, .features = context->features};
    ring->write_cache = context->write_cache;
    return 0;
}

int vhost_user_ring_start(struct vhost_user_ring *ring, const struct vhost_user_ring_context *context)
{
    int r = ring_prepare(ring, context);
    if (r == 0)
        r = vhost_user_thread_call(ring->thread, start_call, ring);
    if (r < 0) {
        ring_free(ring);
        return r;
    }
    ring->running = true;
    return 0;
}

static void stop_call(struct vhost_user_call *call)
{
    struct vhost_user_ring *ring = call->object;
    ring->active = false;
    io_watch_remove(ring->thread->loop, &ring->kick);
    image_queue_refuse_wait(ring->thread->queue, true); // or it would not end until there is space
    ring->stopping = call;                              // the hook of the next turn sees whether something is in flight
}

void vhost_user_ring_stop(struct vhost_user_ring *ring)
{
    if (!ring->running)
        return;
    (void)vhost_user_thread_call(ring->thread, stop_call, ring);
    ring->running = false;
    ring->base = ring->queue.last_available;
    ring_free(ring);
}

struct call_change {
    struct vhost_user_ring *ring;
    int fd;
};

static void swap_call(struct vhost_user_ring *ring, int fd)
{
    close_fd(&ring->call_fd);
    ring->call_fd = fd;
    signal_fd(fd);
}

static void set_call_call(struct vhost_user_call *call)
{
    struct call_change *change = call->object;
    swap_call(change->ring, change->fd);
    vhost_user_call_done(call, 0);
}

void vhost_user_ring_set_call(struct vhost_user_ring *ring, int fd)
{
    struct call_change change = {.ring = ring, .fd = fd};
    if (ring->running)
        (void)vhost_user_thread_call(ring->thread, set_call_call, &change);
    else
        swap_call(ring, fd);
}

void vhost_user_ring_reset(struct vhost_user_ring *ring)
{
    vhost_user_ring_stop(ring);
    close_fd(&ring->kick_fd);
    close_fd(&ring->call_fd);
    close_fd(&ring->error_fd);
    ring->size = ring->base = 0;
    ring->has_addresses = ring->enabled = false;
}
