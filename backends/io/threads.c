// SPDX-License-Identifier: Apache-2.0
/*
 * The thread-pool engine, for hosts without io_uring: the same behaviour, slower. File operations go to a few worker
 * threads in batches, one lock for each turn; they answer on a lock-free stack and wake the loop by its eventfd.
 * Readiness is epoll, edge-triggered. Operations on plain descriptors never wait in a worker (threads_fd.c).
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <unistd.h>

#include "backends/io/threads.h"
#include "common/checked.h"
#include "common/cleanup.h"

/* Keys that no watch has: their index part is out of reach. */
#define KEY_WAKE UINT64_MAX
#define KEY_PARKED (UINT64_MAX - 1)

/* ---- workers ---- */

/* One system call, as the kernel answers it. */
static int work_call(const struct io_op *op)
{
    struct iovec rest;
    unsigned count;
    ssize_t n;
    switch (op->kind) {
    case IO_READ: {
        const struct iovec *iov = op_next_iov(op, &rest, &count);
        n = preadv(op->file->fd, iov, (int)count, (off_t)(op->offset + op->progress));
        break;
    }
    case IO_WRITE: {
        const struct iovec *iov = op_next_iov(op, &rest, &count);
        n = pwritev(op->file->fd, iov, (int)count, (off_t)(op->offset + op->progress));
        break;
    }
    case IO_FLUSH:
        n = fdatasync(op->file->fd);
        break;
    default:
        n = fallocate(op->file->fd, op_fallocate_mode(op->kind), (off_t)op->offset, (off_t)op->length);
        break;
    }
    return n < 0 ? -errno : (int)n;
}

static void push_done(struct io_loop *loop, struct work *work)
{
    struct threads *t = loop->state;
    struct work *head = atomic_load_explicit(&t->done, memory_order_relaxed);
    do {
        work->next = head;
    } while (!atomic_compare_exchange_weak_explicit(&t->done, &head, work, memory_order_release, memory_order_relaxed));
    if (!head) {
        uint64_t one = 1;
        ssize_t n = write(loop->wake_fd, &one, sizeof(one));
        (void)n;
    }
}

static struct work *take_todo(struct threads *t)
{
    LOCK_SCOPE(&t->lock);
    while (!t->todo.head && !t->ending) {
        t->idle++;
        (void)pthread_cond_wait(&t->work, &t->lock);
        t->idle--;
    }
    struct work *work = t->todo.head;
    if (work) {
        t->todo.head = work->next;
        if (!t->todo.head)
            t->todo.tail = &t->todo.head;
    }
    return work;
}

static void *worker_main(void *arg)
{
    struct io_loop *loop = arg;
    struct work *work;
    while ((work = take_todo(loop->state)) != NULL) {
        work->result = work_call(work->op);
        push_done(loop, work);
    }
    return NULL;
}

/* ---- operations ---- */

static bool threads_start(struct io_loop *loop, struct io_op *op)
{
    struct threads *t = loop->state;
    struct work *work = t->free;
    if (!work)
        return false;
    t->free = work->next;
    work->op = op;
    work_list_append(op->kind <= IO_ZERO ? &t->files : &t->fds, work);
    return true;
}

void work_finish(struct io_loop *loop, struct work *work, int result)
{
    struct threads *t = loop->state;
    struct io_op *op = work->op;
    work->next = t->free;
    t->free = work;
    op_complete(loop, op, result);
}

/* Hand this turn's batch to the workers. */
static void send_batch(struct threads *t)
{
    if (!t->files.head)
        return;
    unsigned count = 0;
    for (struct work *work = t->files.head; work; work = work->next)
        count++;
    LOCK_SCOPE(&t->lock);
    *t->todo.tail = t->files.head;
    t->todo.tail = t->files.tail;
    work_list_init(&t->files);
    for (unsigned i = 0; i < MIN(count, t->idle); i++)
        (void)pthread_cond_signal(&t->work);
}

static int reap_done(struct io_loop *loop)
{
    struct threads *t = loop->state;
    struct work *newest = atomic_exchange_explicit(&t->done, NULL, memory_order_acquire);
    struct work *first = NULL;
    int count = 0;
    while (newest) {
        struct work *next = newest->next;
        newest->next = first;
        first = newest;
        newest = next;
    }
    while (first) {
        struct work *next = first->next;
        work_finish(loop, first, first->result);
        first = next;
        count++;
    }
    return count;
}

/* ---- readiness ---- */

static int threads_watch(struct io_loop *loop, int fd, uint32_t events, uint64_t key)
{
    struct threads *t = loop->state;
    struct epoll_event event = {.events = events | EPOLLET, .data.u64 = key};
    return epoll_ctl(t->epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static void threads_unwatch(struct io_loop *loop, int fd, uint64_t key)
{
    struct threads *t = loop->state;
    (void)key;
    (void)epoll_ctl(t->epoll, EPOLL_CTL_DEL, fd, NULL);
}

/* ---- turns ---- */

static int epoll_timeout(int64_t timeout_ns)
{
    if (timeout_ns < 0)
        return -1;
    return (int)MIN((timeout_ns + 999999) / 1000000, (int64_t)INT_MAX);
}

static int threads_turn(struct io_loop *loop, int64_t timeout_ns)
{
    struct threads *t = loop->state;
    struct epoll_event events[64];
    send_batch(t);
    int count = fd_work_run(loop);
    if (count || atomic_load_explicit(&t->done, memory_order_relaxed))
        timeout_ns = 0;
    int n = epoll_wait(t->epoll, events, ARRAY_SIZE(events), epoll_timeout(timeout_ns));
    if (n < 0 && errno != EINTR)
        return -errno;
    count += reap_done(loop);
    for (int i = 0; i < n; i++) {
        if (events[i].data.u64 == KEY_PARKED)
            count += fd_work_ready(loop);
        else if (events[i].data.u64 != KEY_WAKE)
            count += watch_dispatch(loop, events[i].data.u64, events[i].events);
    }
    return count;
}

/* ---- what only io_uring has ---- */

static void threads_register_file(struct io_loop *loop, struct io_file *file)
{
    (void)loop;
    (void)file;
}

static int threads_restrict(struct io_loop *loop)
{
    (void)loop;
    return -EOPNOTSUPP;
}

/* ---- life ---- */

static void threads_destroy(struct io_loop *loop)
{
    struct threads *t = loop->state;
    if (!t)
        return;
    (void)pthread_mutex_lock(&t->lock);
    t->ending = true;
    (void)pthread_cond_broadcast(&t->work);
    (void)pthread_mutex_unlock(&t->lock);
    for (unsigned i = 0; i < t->workers; i++)
        (void)pthread_join(t->worker[i], NULL);
    (void)pthread_cond_destroy(&t->work);
    (void)pthread_mutex_destroy(&t->lock);
    cleanup_close(&t->parked_epoll);
    cleanup_close(&t->epoll);
    free(t->cells);
    free(t);
    loop->state = NULL;
}

/* Signals belong to the process's own threads. */
static int start_workers(struct io_loop *loop)
{
    struct threads *t = loop->state;
    sigset_t all, old;
    int r = 0;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    while (r == 0 && t->workers < IO_WORKERS) {
        r = pthread_create(&t->worker[t->workers], NULL, worker_main, loop);
        if (r == 0)
            t->workers++;
    }
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -r;
}

static int add_inner(struct threads *t, int fd, uint32_t events, uint64_t key)
{
    struct epoll_event event = {.events = events, .data.u64 = key};
    return epoll_ctl(t->epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static int threads_create(struct io_loop *loop, unsigned depth, struct error *err)
{
    struct threads *t = calloc(1, sizeof(*t));
    if (!t)
        return error_sys(err, ENOMEM, "create a thread pool");
    loop->state = t;
    (void)pthread_mutex_init(&t->lock, NULL);
    (void)pthread_cond_init(&t->work, NULL);
    work_list_init(&t->files);
    work_list_init(&t->fds);
    work_list_init(&t->todo);
    work_list_init(&t->parked);
    t->parked_epoll = -1;
    t->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (t->epoll >= 0)
        t->parked_epoll = epoll_create1(EPOLL_CLOEXEC);
    if (t->parked_epoll < 0)
        return error_sys(err, errno, "create an epoll");
    unsigned cells = depth * 2;
    t->cells = calloc(cells, sizeof(*t->cells));
    if (!t->cells)
        return error_sys(err, ENOMEM, "create a thread pool");
    for (unsigned i = 0; i < cells; i++) {
        t->cells[i].next = t->free;
        t->free = &t->cells[i];
    }
    int r = add_inner(t, loop->wake_fd, EPOLLIN | EPOLLET, KEY_WAKE);
    if (r == 0)
        r = add_inner(t, t->parked_epoll, EPOLLIN, KEY_PARKED);
    if (r == 0)
        r = start_workers(loop);
    return r < 0 ? error_sys(err, r, "create a thread pool") : 0;
}

const struct io_engine_ops threads_engine_ops = {
    .kind = IO_ENGINE_THREADS,
    .create = threads_create,
    .destroy = threads_destroy,
    .start = threads_start,
    .turn = threads_turn,
    .watch = threads_watch,
    .unwatch = threads_unwatch,
    .register_file = threads_register_file,
    .unregister_file = threads_register_file,
    .restrict_ops = threads_restrict,
};
