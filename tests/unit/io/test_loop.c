// SPDX-License-Identifier: Apache-2.0
/* The loop itself: descriptors, watches, tasks of other threads, timers, hooks, restrictions. */
#include "helpers.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- operations on descriptors ---- */

static void fd_init(struct waited *w, enum io_kind kind, int fd, void *buffer, size_t length)
{
    waited_init(w, kind, NULL, 0, length);
    w->op.fd = fd;
    waited_buffer(w, buffer, length);
}

static void message_init(struct waited *w, struct msghdr *message, enum io_kind kind, int fd, void *buffer,
                         size_t length)
{
    fd_init(w, kind, fd, buffer, length);
    memset(message, 0, sizeof(*message));
    message->msg_iov = w->iov;
    message->msg_iovlen = 1;
    w->op.message = message;
}

static void sockets_both_ways(void **state)
{
    for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
        struct io_loop *loop = loop_new(state, 0);
        int fds[2];
        char in[16] = {0};
        struct waited rx, tx;
        struct msghdr rx_message, tx_message;
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | (nonblocking ? SOCK_NONBLOCK : 0), 0, fds), 0);

        /* Nothing there: it waits, O_NONBLOCK or not. */
        message_init(&rx, &rx_message, IO_FD_RECVMSG, fds[0], in, sizeof(in));
        io_submit(loop, &rx.op);
        assert_true(io_loop_turn(loop, 0) >= 0);
        assert_int_equal(rx.calls, 0);
        message_init(&tx, &tx_message, IO_FD_SENDMSG, fds[1], (char[]){"hello"}, 5);
        assert_int_equal(waited_run(loop, &tx), 5);
        waited_wait(loop, &rx);
        assert_int_equal(rx.result, 5);
        assert_memory_equal(in, "hello", 5);

        fd_init(&tx, IO_FD_WRITEV, fds[0], (char[]){"back"}, 4);
        assert_int_equal(waited_run(loop, &tx), 4);
        fd_init(&rx, IO_FD_READV, fds[1], in, sizeof(in));
        assert_int_equal(waited_run(loop, &rx), 4);

        /* A read waits, data go the other way, the peer goes away. */
        message_init(&rx, &rx_message, IO_FD_RECVMSG, fds[0], in, sizeof(in));
        io_submit(loop, &rx.op);
        message_init(&tx, &tx_message, IO_FD_SENDMSG, fds[0], (char[]){"x"}, 1);
        assert_int_equal(waited_run(loop, &tx), 1);
        assert_int_equal(read(fds[1], in, 1), 1);
        assert_int_equal(rx.calls, 0);
        (void)close(fds[1]);
        waited_wait(loop, &rx);
        assert_int_equal(rx.result, 0);
        message_init(&tx, &tx_message, IO_FD_SENDMSG, fds[0], (char[]){"x"}, 1);
        assert_int_equal(waited_run(loop, &tx), -EPIPE);
        (void)close(fds[0]);
        (void)io_loop_destroy(loop);
    }
}

static void a_full_socket_takes_what_fits(void **state)
{
    struct io_loop *loop = loop_new(state, 0);
    int fds[2];
    size_t size = 4 << 20;
    char *out = malloc(size);
    char *in = malloc(size);
    memset(out, 'x', size);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    struct waited tx, rx;
    size_t sent = 0, received = 0;
    struct msghdr tx_message, rx_message;
    message_init(&tx, &tx_message, IO_FD_SENDMSG, fds[0], out, size);
    message_init(&rx, &rx_message, IO_FD_RECVMSG, fds[1], in, size);
    io_submit(loop, &tx.op);
    io_submit(loop, &rx.op);
    while (received < size) {
        assert_true(io_loop_turn(loop, 10000) >= 0);
        if (tx.calls && sent < size) {
            assert_true(tx.result > 0);
            sent += (size_t)tx.result;
            message_init(&tx, &tx_message, IO_FD_SENDMSG, fds[0], out, size - sent);
            if (sent < size)
                io_submit(loop, &tx.op);
        }
        if (rx.calls) {
            assert_true(rx.result > 0);
            received += (size_t)rx.result;
            message_init(&rx, &rx_message, IO_FD_RECVMSG, fds[1], in, size);
            if (received < size)
                io_submit(loop, &rx.op);
        }
    }
    assert_int_equal(sent, size);
    (void)close(fds[0]);
    (void)close(fds[1]);
    (void)io_loop_destroy(loop);
    free(out);
    free(in);
}

/* ---- watches ---- */

struct counted {
    struct io_watch watch; /* first */
    struct io_loop *loop;
    unsigned calls;
    uint32_t revents;
    struct counted *remove; /* what ready() removes */
};

static void counted_ready(struct io_watch *watch, uint32_t revents)
{
    struct counted *c = (struct counted *)watch;
    c->calls++;
    c->revents |= revents;
    if (c->remove)
        io_watch_remove(c->loop, &c->remove->watch);
}

static void counted_add(struct counted *c, struct io_loop *loop, int fd)
{
    *c = (struct counted){.watch = {.fd = fd, .events = POLLIN, .ready = counted_ready}, .loop = loop};
    assert_int_equal(io_watch_add(loop, &c->watch), 0);
    assert_true(c->watch.active);
}

static void watches_report_every_kick_until_removed(void **state)
{
    struct io_loop *loop = loop_new(state, 0);
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct counted *c = malloc(sizeof(*c));
    counted_add(c, loop, fd);
    assert_true(io_loop_turn(loop, 0) >= 0);
    assert_int_equal(c->calls, 0);
    for (unsigned i = 1; i <= 50; i++) {
        assert_int_equal(eventfd_write(fd, 1), 0);
        while (c->calls < i)
            assert_true(io_loop_turn(loop, 10000) >= 0);
        assert_int_equal(c->revents, POLLIN);
    }
    assert_int_equal(eventfd_write(fd, 1), 0);
    io_watch_remove(loop, &c->watch);
    assert_false(c->watch.active);
    free(c); /* the sanitizer sees whoever still touches it */
    assert_true(io_loop_turn(loop, 0) >= 0);
    assert_int_equal(eventfd_write(fd, 1), 0);
    assert_true(io_loop_turn(loop, 0) >= 0);
    (void)close(fd);

    /* A new user of the slot does not get the old one's events. */
    int other = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct counted d, e;
    counted_add(&d, loop, other);
    assert_true(io_loop_turn(loop, 0) >= 0);
    assert_int_equal(d.calls, 0);
    /* Two watches of one descriptor. */
    counted_add(&e, loop, other);
    assert_int_equal(eventfd_write(other, 1), 0);
    while (!d.calls || !e.calls)
        assert_true(io_loop_turn(loop, 10000) >= 0);
    io_watch_remove(loop, &d.watch);
    io_watch_remove(loop, &e.watch);
    (void)close(other);
    (void)io_loop_destroy(loop);
}

static void ready_may_remove_watches(void **state)
{
    struct io_loop *loop = loop_new(state, 0);
    int a = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
    int b = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
    struct counted x, y;
    counted_add(&x, loop, a);
    counted_add(&y, loop, b);
    x.remove = &y;
    y.remove = &x;
    while (x.calls + y.calls == 0)
        assert_true(io_loop_turn(loop, 10000) >= 0);
    assert_int_equal(x.calls + y.calls, 1);
    assert_true(io_loop_turn(loop, 0) >= 0);
    assert_int_equal(x.calls + y.calls, 1);
    (void)close(a);
    (void)close(b);
    (void)io_loop_destroy(loop);
}

static void a_closed_peer_is_reported(void **state)
{
    struct io_loop *loop = loop_new(state, 0);
    int fds[2];
    struct counted c;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
    counted_add(&c, loop, fds[0]);
    assert_true(io_loop_turn(loop, 0) >= 0);
    (void)close(fds[1]);
    while (!c.calls)
        assert_true(io_loop_turn(loop, 10000) >= 0);
    assert_true(c.revents & POLLHUP);
    io_watch_remove(loop, &c.watch);
    (void)close(fds[0]);
    (void)io_loop_destroy(loop);
}

/* ---- tasks ---- */

struct counter_task {
    struct io_task task; /* first */
    struct io_loop *loop;
    unsigned *count;
    _Atomic unsigned *again; /* how often to post itself again */
};

static void counter_run(struct io_task *task)
{
    struct counter_task *c = (struct counter_task *)task;
    ++*c->count;
    if (c->again && atomic_load(c->again)) {
        atomic_fetch_sub(c->again, 1);
        io_loop_post(c->loop, task);
    }
}

enum { POSTERS = 4, POSTS = 2000 };

struct poster {
    struct counter_task tasks[POSTS];
    struct io_loop *loop;
    pthread_t thread;
};

static void *poster_main(void *arg)
{
    struct poster *p = arg;
    for (int i = 0; i < POSTS; i++)
        io_loop_post(p->loop, &p->tasks[i].task);
    return NULL;
}

static void tasks_from_many_threads(void **state)
{
    struct io_loop *loop = loop_new(state, 0);
    unsigned count = 0;
    struct poster *posters = calloc(POSTERS, sizeof(*posters));
    for (int i = 0; i < POSTERS; i++) {
        posters[i].loop = loop;
        for (int k = 0; k < POSTS; k++)
            posters[i].tasks[k] = (struct counter_task){.task.run = counter_run, .loop = loop, .count = &count};
        assert_int_equal(pthread_create(&posters[i].thread, NULL, poster_main, &posters[i]), 0);
    }
    while (count < POSTERS * POSTS)
        assert_true(io_loop_turn(loop, -1) >= 0);
    for (int i = 0; i < POSTERS; i++)
        (void)pthread_join(posters[i].thread, NULL);
    assert_int_equal(count, POSTERS * POSTS);

    _Atomic unsigned again = 10;
    struct counter_task own = {.task.run = counter_run, .loop = loop, .count = &count, .again = &again};
    count = 0;
    io_loop_post(loop, &own.task);
    while (count < 11)
        assert_true(io_loop_turn(loop, -1) >= 0);
    io_loop_post(loop, &own.task); /* nobody turns: destroy runs it */
    (void)io_loop_destroy(loop);
    assert_int_equal(count, 12);
    free(posters);
}

static void *stopper_main(void *arg)
{
    io_loop_stop(arg);
    return NULL;
}

static void run_until_stopped(void **state)
{
    struct io_loop *loop = loop_new(state, 0);
    for (int i = 0; i < 20; i++) {
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, stopper_main, loop), 0);
        assert_int_equal(io_loop_run(loop), 0);
        (void)pthread_join(thread, NULL);
    }
    (void)io_loop_destroy(loop);
}

/* ---- timers, hooks ---- */

struct shot {
    struct io_timer timer; /* first */
    struct io_loop *loop;
    unsigned fired, again;
    int *order;
    int at;
};

static void shot_fire(struct io_timer *timer)
{
    struct shot *s = (struct shot *)timer;
    s->fired++;
    s->at = (*s->order)++;
    if (s->again-- > 1)
        io_timer_arm(s->loop, timer, 1000000);
}

static void timers_fire_in_order(void **state)
{
    struct io_loop *loop = loop_new(state, 0);
    int order = 0;
    struct shot s[4];
    for (int i = 0; i < 4; i++) {
        s[i] = (struct shot){.timer.fire = shot_fire, .loop = loop, .order = &order, .again = 1};
        io_timer_arm(loop, &s[i].timer, (uint64_t)(4 - i) * 3000000);
    }
    io_timer_cancel(loop, &s[2].timer);
    io_timer_cancel(loop, &s[2].timer);
    s[3].again = 3;
    while (s[0].fired == 0 || s[3].fired < 3)
        assert_true(io_loop_turn(loop, -1) >= 0);
    assert_true(s[3].at < s[0].at || s[3].fired == 3);
    assert_true(s[1].at < s[0].at);
    assert_int_equal(s[2].fired, 0);
    assert_int_equal(s[1].fired, 1);
    io_timer_arm(loop, &s[0].timer, UINT64_MAX);
    assert_int_equal(io_loop_turn(loop, 1), 0);
    (void)io_loop_destroy(loop);
}

struct busy_hook {
    struct io_hook hook; /* first */
    struct io_loop *loop;
    unsigned calls, busy;
    struct busy_hook *remove;
};

static bool busy_before_wait(struct io_hook *hook)
{
    struct busy_hook *h = (struct busy_hook *)hook;
    h->calls++;
    if (h->remove)
        io_loop_remove_hook(h->loop, &h->remove->hook);
    return h->busy && h->busy--;
}

static void hooks_run_each_turn(void **state)
{
    struct io_loop *loop = loop_new(state, 0);
    struct busy_hook h[3];
    for (int i = 0; i < 3; i++) {
        h[i] = (struct busy_hook){.hook.before_wait = busy_before_wait, .loop = loop};
        io_loop_add_hook(loop, &h[i].hook);
    }
    h[0].busy = 5;
    for (unsigned i = 0; i < 5; i++)
        assert_true(io_loop_turn(loop, -1) >= 0); /* would sleep for ever */
    assert_int_equal(h[2].calls, 5);
    h[0].remove = &h[1];
    h[2].remove = &h[2];
    assert_true(io_loop_turn(loop, 0) >= 0);
    assert_true(io_loop_turn(loop, 0) >= 0);
    assert_int_equal(h[0].calls, 7);
    assert_int_equal(h[1].calls, 5);
    assert_int_equal(h[2].calls, 6);
    (void)io_loop_destroy(loop);
}

/* ---- the life of loops ---- */

static void a_restricted_loop_does_its_work(void **state)
{
    struct io_loop *loop = loop_new(state, 0);
    int r = io_loop_restrict(loop);
    if (io_loop_engine(loop) == IO_ENGINE_THREADS)
        assert_int_equal(r, -EOPNOTSUPP);
    else
        assert_true(r == 0 || r == -EOPNOTSUPP);
    struct io_file *file = scratch_file(NULL, false);
    io_loop_register_file(loop, file);
    static _Alignas(4096) uint8_t a[8192], b[8192];
    pattern(a, sizeof(a), 1);
    assert_int_equal(op_write(loop, file, a, sizeof(a), 0), 0);
    io_loop_unregister_file(loop, file);
    io_loop_register_file(loop, file);
    assert_int_equal(op_read(loop, file, b, sizeof(b), 0), 0);
    assert_memory_equal(a, b, sizeof(a));
    static const enum io_kind kinds[] = {IO_FLUSH, IO_ZERO, IO_DISCARD};
    for (int i = 0; i < 3; i++) {
        struct waited w;
        waited_init(&w, kinds[i], file, 0, 4096);
        assert_int_equal(waited_run(loop, &w), 0);
    }
    int fd = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
    struct counted c;
    counted_add(&c, loop, fd);
    while (!c.calls)
        assert_true(io_loop_turn(loop, 10000) >= 0);
    io_watch_remove(loop, &c.watch);
    assert_int_equal(io_loop_turn(loop, 1), 0);
    if (io_loop_engine(loop) == IO_ENGINE_URING)
        assert_int_equal(io_loop_restrict(loop), -EBUSY);
    (void)close(fd);
    io_loop_unregister_file(loop, file);
    (void)io_loop_destroy(loop);
    (void)io_file_close(file);
}

static void loops_come_and_go(void **state)
{
    struct io_loop *loops[20];
    for (int i = 0; i < 20; i++)
        loops[i] = loop_new(state, i % 2 ? 8 : 0);
    for (int i = 0; i < 20; i += 2)
        assert_int_equal(io_loop_turn(loops[i], 0), 0);
    for (int i = 0; i < 20; i++)
        assert_null(io_loop_destroy(loops[i]));
    assert_null(io_loop_destroy(NULL));
    assert_null(io_file_close(NULL));
}

int main(void)
{
    (void)signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sockets_both_ways),
        cmocka_unit_test(a_full_socket_takes_what_fits),
        cmocka_unit_test(watches_report_every_kick_until_removed),
        cmocka_unit_test(ready_may_remove_watches),
        cmocka_unit_test(a_closed_peer_is_reported),
        cmocka_unit_test(tasks_from_many_threads),
        cmocka_unit_test(run_until_stopped),
        cmocka_unit_test(timers_fire_in_order),
        cmocka_unit_test(hooks_run_each_turn),
        cmocka_unit_test(a_restricted_loop_does_its_work),
        cmocka_unit_test(loops_come_and_go),
    };
    return RUN_ON_ENGINES(tests);
}
