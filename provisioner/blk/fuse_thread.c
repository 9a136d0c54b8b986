// SPDX-License-Identifier: Apache-2.0
// I/O threads of the FUSE export: reading requests, writing answers, life.
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/checked.h"
#include "provisioner/blk/fuse_export.h"

/* A page for the header before the payload, of which only the end is ever touched. */
#define HEAD_PAGE 4096u
#define STRIDE (HEAD_PAGE + FUSE_TRANSFER_MAX)

/* ---- answers ---- */

static void slot_give(struct fuse_slot *slot)
{
    struct fuse_thread *thread = slot->thread;
    slot->next = thread->free;
    thread->free = slot;
    thread->busy--;
}

static void end_if_idle(struct fuse_thread *thread)
{
    if (!thread->stopping || thread->busy > 0)
        return;
    io_loop_remove_hook(thread->base.loop, &thread->hook);
    io_loop_stop(thread->base.loop);
}

/* Errors: -ENOENT, the caller of the request was killed; -ENODEV, the file system was unmounted. Nobody is waiting. */
static void reply_done(struct io_op *op, int result)
{
    struct fuse_slot *slot = (void *)((char *)op - offsetof(struct fuse_slot, reply));
    if (result == -EINTR || result == -EAGAIN) {
        io_submit(slot->thread->base.loop, op);
        return;
    }
    slot_give(slot);
    end_if_idle(slot->thread);
}

void fuse_reply(struct fuse_slot *slot, int error, uint32_t length)
{
    struct fuse_out_header *head = (void *)(slot->payload - sizeof(*head));
    *head = (struct fuse_out_header){
        .len = (uint32_t)sizeof(*head) + (error ? 0 : length),
        .error = error,
        .unique = slot->unique,
    };
    slot->reply_iov = (struct iovec){head, head->len};
    slot->reply = (struct io_op){
        .kind = IO_FD_WRITEV,
        .fd = slot->thread->export->fd,
        .iov = &slot->reply_iov,
        .iovcnt = 1,
        .done = reply_done,
    };
    io_submit(slot->thread->base.loop, &slot->reply);
}

void fuse_reply_none(struct fuse_slot *slot)
{
    slot_give(slot);
}

/* ---- requests ---- */

static void listen_no_more(struct fuse_thread *thread)
{
    if (!thread->listening)
        return;
    thread->listening = false;
    thread->hungry = false;
    io_watch_remove(thread->base.loop, &thread->watch);
    atomic_fetch_sub(&thread->export->connected, 1);
}

static void take_requests(struct fuse_thread *thread)
{
    int fd = thread->export->fd;
    thread->hungry = true;
    while (thread->free) {
        struct fuse_slot *slot = thread->free;
        ssize_t n = read(fd, slot->payload - FUSE_REQUEST_HEAD, FUSE_REQUEST_HEAD + FUSE_TRANSFER_MAX);
        if (n > 0) {
            thread->free = slot->next;
            thread->busy++;
            fuse_request(slot, (uint32_t)n);
        } else if (n < 0 && errno == EAGAIN) {
            thread->hungry = false;
            return;
        } else if (n == 0 || (errno != EINTR && errno != ENOENT)) {
            listen_no_more(thread); /* -ENODEV: unmounted */
            return;
        }
    }
}

static void ready(struct io_watch *watch, uint32_t revents)
{
    struct fuse_thread *thread = (void *)((char *)watch - offsetof(struct fuse_thread, watch));
    (void)revents;
    if (thread->listening)
        take_requests(thread);
}

/* Slots that the turn's completions gave back take what was left lying. */
static bool before_wait(struct io_hook *hook)
{
    struct fuse_thread *thread = (void *)((char *)hook - offsetof(struct fuse_thread, hook));
    if (thread->listening && thread->hungry && thread->free)
        take_requests(thread);
    return false;
}

/* ---- life ---- */

/* The memory is there from the beginning and stays. A process that was killed takes no page faults any more, and a
 * request that the kernel was just copying to it would fail for the want of a page, where all others are sent to
 * the successor. */
static int make_slots(struct fuse_thread *thread)
{
    void *memory = mmap(NULL, (size_t)FUSE_SLOTS * STRIDE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED)
        return -ENOMEM;
    (void)mlock(memory,
                (size_t)FUSE_SLOTS * STRIDE); /* where the limits do not allow it, only swapping brings the risk */
    thread->memory = memory;
    for (unsigned i = 0; i < FUSE_SLOTS; i++) {
        struct fuse_slot *slot = &thread->slots[i];
        slot->thread = thread;
        slot->payload = thread->memory + (size_t)i * STRIDE + HEAD_PAGE;
        slot->next = thread->free;
        thread->free = slot;
    }
    return 0;
}

int fuse_thread_start(struct fuse_export *export, unsigned index, int cpu, enum io_engine engine, struct error *err)
{
    struct fuse_thread *thread = &export->threads[index];
    char name[16];
    (void)snprintf(name, sizeof(name), "fuse-io-%u", index);
    int r = export_thread_start(&thread->base, export->image, engine, cpu, name, err);
    if (r < 0)
        return r;
    export->thread_count++;
    thread->export = export;
    r = make_slots(thread);
    return r < 0 ? error_sys(err, r, "fuse: memory for requests") : 0;
}

static void begin(struct io_task *task)
{
    struct fuse_thread *thread = (void *)((char *)task - offsetof(struct fuse_thread, begin));
    thread->hook.before_wait = before_wait;
    io_loop_add_hook(thread->base.loop, &thread->hook);
    thread->watch = (struct io_watch){.fd = thread->export->fd, .events = POLLIN, .ready = ready};
    if (io_watch_add(thread->base.loop, &thread->watch) < 0) {
        atomic_fetch_sub(&thread->export->connected, 1); /* the other threads serve on */
        return;
    }
    thread->listening = true;
    take_requests(thread);
}

void fuse_thread_listen(struct fuse_thread *thread)
{
    thread->begin.run = begin;
    io_loop_post(thread->base.loop, &thread->begin);
}

static void stop(struct io_task *task)
{
    struct fuse_thread *thread = (void *)((char *)task - offsetof(struct fuse_thread, end));
    listen_no_more(thread);
    thread->stopping = true;
    end_if_idle(thread);
}

void fuse_thread_stop(struct fuse_thread *thread)
{
    thread->end.run = stop;
    io_loop_post(thread->base.loop, &thread->end);
}

void fuse_thread_join(struct fuse_thread *thread)
{
    export_thread_join(&thread->base);
    if (thread->memory)
        (void)munmap(thread->memory, (size_t)FUSE_SLOTS * STRIDE);
    thread->memory = NULL;
}
