// SPDX-License-Identifier: Apache-2.0
/*
 * Operations on plain descriptors in the thread-pool engine, done on the loop's own thread without blocking it, as
 * io_uring does them: what would block is parked until epoll finds the descriptor ready, except that reads and writes of
 * a non-blocking descriptor which knows no RWF_NOWAIT answer -EAGAIN at once.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "backends/io/threads.h"
#include "common/checked.h"

static bool reads(const struct io_op *op)
{
    return op->kind == IO_FD_READV || op->kind == IO_FD_RECVMSG;
}

static ssize_t message_call(const struct io_op *op)
{
    if (op->kind == IO_FD_RECVMSG)
        return recvmsg(op->fd, op->message, MSG_DONTWAIT);
    return sendmsg(op->fd, op->message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static ssize_t vector_call(const struct io_op *op, bool nowait)
{
    int count = (int)op->iovcnt;
    if (reads(op))
        return nowait ? preadv2(op->fd, op->iov, count, -1, RWF_NOWAIT) : readv(op->fd, op->iov, count);
    return nowait ? pwritev2(op->fd, op->iov, count, -1, RWF_NOWAIT) : writev(op->fd, op->iov, count);
}

/* False when it has to wait; else *ret_result is the answer. */
static bool fd_try(const struct io_op *op, int *ret_result)
{
    bool message = op->kind == IO_FD_RECVMSG || op->kind == IO_FD_SENDMSG;
    ssize_t n = message ? message_call(op) : vector_call(op, true);
    bool can_wait = true;
    if (n < 0 && errno == EOPNOTSUPP && !message) {
        struct pollfd pfd = {.fd = op->fd, .events = reads(op) ? POLLIN : POLLOUT};
        can_wait = !(fcntl(op->fd, F_GETFL) & O_NONBLOCK);
        if (can_wait && poll(&pfd, 1, 0) == 0)
            return false;
        n = vector_call(op, false);
    }
    if (n < 0 && errno == EAGAIN && can_wait)
        return false;
    *ret_result = n < 0 ? -errno : (int)n;
    return true;
}

/* Have parked_epoll report `fd` for all operations parked on it. */
static int arm(struct threads *t, int fd)
{
    struct epoll_event event = {.events = EPOLLONESHOT, .data.fd = fd};
    for (const struct work *work = t->parked.head; work; work = work->next) {
        if (work->op->fd == fd)
            event.events |= reads(work->op) ? EPOLLIN : EPOLLOUT;
    }
    if (event.events == EPOLLONESHOT)
        return 0;
    if (epoll_ctl(t->parked_epoll, EPOLL_CTL_ADD, fd, &event) == 0)
        return 0;
    if (errno == EEXIST && epoll_ctl(t->parked_epoll, EPOLL_CTL_MOD, fd, &event) == 0)
        return 0;
    return -errno;
}

static void unpark(struct threads *t, struct work *work)
{
    struct work **at = &t->parked.head;
    while (*at != work)
        at = &(*at)->next;
    *at = work->next;
    if (!*at)
        t->parked.tail = at;
}

int fd_work_run(struct io_loop *loop)
{
    struct threads *t = loop->state;
    struct work *work = t->fds.head;
    int count = 0;
    work_list_init(&t->fds);
    while (work) {
        struct work *next = work->next;
        int result;
        bool done = fd_try(work->op, &result);
        if (!done) {
            work_list_append(&t->parked, work);
            result = arm(t, work->op->fd);
            if (result < 0) {
                unpark(t, work);
                done = true;
            }
        }
        if (done) {
            work_finish(loop, work, result);
            count++;
        }
        work = next;
    }
    return count;
}

/* Try everything parked on `fd`, oldest first. */
static int retry(struct io_loop *loop, int fd)
{
    struct threads *t = loop->state;
    struct work_list ready;
    int count = 0;
    work_list_init(&ready);
    for (struct work *work = t->parked.head, *next; work; work = next) {
        next = work->next;
        if (work->op->fd == fd && fd_try(work->op, &work->result)) {
            unpark(t, work);
            work_list_append(&ready, work);
        }
    }
    (void)arm(t, fd);
    for (struct work *work = ready.head, *next; work; work = next) {
        next = work->next;
        work_finish(loop, work, work->result);
        count++;
    }
    return count;
}

int fd_work_ready(struct io_loop *loop)
{
    struct threads *t = loop->state;
    struct epoll_event events[16];
    int count = 0;
    int n = epoll_wait(t->parked_epoll, events, ARRAY_SIZE(events), 0);
    for (int i = 0; i < n; i++)
        count += retry(loop, events[i].data.fd);
    return count;
}
