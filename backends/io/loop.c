// SPDX-License-Identifier: Apache-2.0
/*
 * The loop: turns, tasks, hooks, timers. What is done with the kernel is the engine's (uring.c, threads.c).
 *
 * Tasks posted by other threads are pushed on a lock-free stack that the loop takes as a whole. Whoever finds the
 * stack empty writes the eventfd; the loop looks at the stack before it sleeps, so no wake-up is lost and there is one
 * system call for a burst of posts.
 */
#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "backends/io/engine.h"
#include "common/checked.h"
#include "common/cleanup.h"

/* ---- tasks (any thread) ---- */

static void wake(struct io_loop *loop)
{
    uint64_t one = 1;
    ssize_t n = write(loop->wake_fd, &one, sizeof(one));
    (void)n; /* it fails only when the counter is about to overflow, and then the loop is awake */
}

/* The task may be run, and the loop destroyed by what it did, while its poster is still about to wake the loop: destroy
 * waits for those who stand between these two. */
static void post_begin(struct io_loop *loop)
{
    (void)atomic_fetch_add_explicit(&loop->posters, 1, memory_order_relaxed);
}

static void post_end(struct io_loop *loop)
{
    (void)atomic_fetch_sub_explicit(&loop->posters, 1, memory_order_release);
}

void io_loop_post(struct io_loop *loop, struct io_task *task)
{
    bool own = pthread_equal(loop->owner, pthread_self());
    if (!own)
        post_begin(loop);
    struct io_task *head = atomic_load_explicit(&loop->posted, memory_order_relaxed);
    do {
        task->next = head;
    } while (
        !atomic_compare_exchange_weak_explicit(&loop->posted, &head, task, memory_order_release, memory_order_relaxed));
    if (own)
        return;
    if (!head)
        wake(loop);
    post_end(loop);
}

void io_loop_stop(struct io_loop *loop)
{
    post_begin(loop);
    atomic_store_explicit(&loop->stop, true, memory_order_release);
    wake(loop);
    post_end(loop);
}

static bool run_tasks(struct io_loop *loop)
{
    if (!atomic_load_explicit(&loop->posted, memory_order_relaxed))
        return false;
    struct io_task *newest = atomic_exchange_explicit(&loop->posted, NULL, memory_order_acquire);
    struct io_task *first = NULL;
    while (newest) {
        struct io_task *next = newest->next;
        newest->next = first;
        first = newest;
        newest = next;
    }
    while (first) {
        struct io_task *next = first->next;
        first->run(first);
        first = next;
    }
    return true;
}

/* ---- hooks ---- */

void io_loop_add_hook(struct io_loop *loop, struct io_hook *hook)
{
    hook->next = NULL;
    struct io_hook **at = &loop->hooks;
    while (*at)
        at = &(*at)->next;
    *at = hook;
}

void io_loop_remove_hook(struct io_loop *loop, struct io_hook *hook)
{
    for (struct io_hook **at = &loop->hooks; *at; at = &(*at)->next) {
        if (*at != hook)
            continue;
        *at = hook->next;
        if (loop->next_hook == hook)
            loop->next_hook = hook->next;
        return;
    }
}

static bool run_hooks(struct io_loop *loop)
{
    bool busy = false;
    for (struct io_hook *hook = loop->hooks; hook; hook = loop->next_hook) {
        loop->next_hook = hook->next;
        busy |= hook->before_wait(hook);
    }
    return busy;
}

/* ---- timers ---- */

static uint64_t now_ns(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void io_timer_arm(struct io_loop *loop, struct io_timer *timer, uint64_t delay_ns)
{
    io_timer_cancel(loop, timer);
    if (!checked_add(now_ns(), delay_ns, &timer->deadline_ns))
        timer->deadline_ns = UINT64_MAX;
    struct io_timer **at = &loop->timers;
    while (*at && (*at)->deadline_ns <= timer->deadline_ns)
        at = &(*at)->next;
    timer->next = *at;
    *at = timer;
    timer->armed = true;
}

void io_timer_cancel(struct io_loop *loop, struct io_timer *timer)
{
    if (!timer->armed)
        return;
    struct io_timer **at = &loop->timers;
    while (*at != timer)
        at = &(*at)->next;
    *at = timer->next;
    timer->armed = false;
}

static int fire_timers(struct io_loop *loop)
{
    int count = 0;
    if (!loop->timers)
        return 0;
    uint64_t now = now_ns();
    while (loop->timers && loop->timers->deadline_ns <= now) {
        struct io_timer *timer = loop->timers;
        loop->timers = timer->next;
        timer->armed = false;
        timer->fire(timer);
        count++;
    }
    return count;
}

static int64_t sleep_limit(const struct io_loop *loop, int timeout_ms)
{
    int64_t limit = timeout_ms < 0 ? -1 : (int64_t)timeout_ms * 1000000;
    if (!loop->timers || limit == 0)
        return limit;
    uint64_t now = now_ns();
    uint64_t deadline = loop->timers->deadline_ns;
    int64_t left = deadline > now ? (int64_t)MIN(deadline - now, (uint64_t)INT64_MAX) : 0;
    return limit < 0 ? left : MIN(limit, left);
}

/* ---- turns ---- */

int io_loop_turn(struct io_loop *loop, int timeout_ms)
{
    bool busy = run_hooks(loop);
    if (unlikely(loop->queued.head != NULL))
        op_start_queued(loop);
    busy |= loop->ready.head || atomic_load_explicit(&loop->posted, memory_order_relaxed) ||
            atomic_load_explicit(&loop->stop, memory_order_relaxed);
    int64_t limit = busy ? 0 : sleep_limit(loop, timeout_ms);
    int count = loop->engine->turn(loop, limit);
    if (unlikely(count < 0))
        return count;
    if (unlikely(loop->ready.head != NULL))
        count += op_dispatch_ready(loop);
    count += fire_timers(loop);
    (void)run_tasks(loop);
    return count;
}

int io_loop_run(struct io_loop *loop)
{
    while (!atomic_exchange_explicit(&loop->stop, false, memory_order_acquire)) {
        int r = io_loop_turn(loop, -1);
        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- life ---- */

static int choose_engine(struct io_loop *loop, const struct io_loop_options *options, struct error *err)
{
    enum io_engine engine = options->engine;
    unsigned depth = options->depth ? MIN(options->depth, IO_DEPTH_MAX) : IO_DEPTH_DEFAULT;
    const char *forced = getenv("PLATTER_IO_ENGINE");
    if (engine == IO_ENGINE_AUTO && forced && strcmp(forced, "uring") == 0)
        engine = IO_ENGINE_URING;
    else if (engine == IO_ENGINE_AUTO && forced && strcmp(forced, "threads") == 0)
        engine = IO_ENGINE_THREADS;

    if (engine != IO_ENGINE_THREADS) {
        loop->engine = &uring_engine_ops;
        int r = loop->engine->create(loop, depth, err);
        if (r == 0 || engine == IO_ENGINE_URING)
            return r;
        loop->engine->destroy(loop);
        error_clear(err);
    }
    loop->engine = &threads_engine_ops;
    return loop->engine->create(loop, depth, err);
}

int io_loop_create(const struct io_loop_options *options, struct io_loop **ret_loop, struct error *err)
{
    static const struct io_loop_options defaults;
    struct io_loop *loop = calloc(1, sizeof(*loop));
    if (!loop)
        return error_sys(err, ENOMEM, "create an I/O loop");
    loop->owner = pthread_self();
    op_list_init(&loop->queued);
    op_list_init(&loop->ready);
    loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int r = loop->wake_fd < 0 ? error_sys(err, errno, "create an eventfd") : bounce_create(loop, err);
    if (r == 0)
        r = choose_engine(loop, options ? options : &defaults, err);
    if (r < 0) {
        (void)io_loop_destroy(loop);
        return r;
    }
    *ret_loop = loop;
    return 0;
}

struct io_loop *io_loop_destroy(struct io_loop *loop)
{
    if (!loop)
        return NULL;
    while (run_tasks(loop))
        ;
    while (atomic_load_explicit(&loop->posters, memory_order_acquire))
        (void)sched_yield();
    if (loop->engine)
        loop->engine->destroy(loop);
    watch_destroy(loop);
    bounce_destroy(loop);
    cleanup_close(&loop->wake_fd);
    free(loop);
    return NULL;
}

enum io_engine io_loop_engine(const struct io_loop *loop)
{
    return loop->engine->kind;
}

void io_loop_register_file(struct io_loop *loop, struct io_file *file)
{
    if (file->index < IO_REGISTERED_FILES)
        loop->engine->register_file(loop, file);
}

void io_loop_unregister_file(struct io_loop *loop, struct io_file *file)
{
    if (file->index < IO_REGISTERED_FILES)
        loop->engine->unregister_file(loop, file);
}

int io_loop_restrict(struct io_loop *loop)
{
    return loop->engine->restrict_ops(loop);
}
