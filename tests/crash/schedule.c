// SPDX-License-Identifier: Apache-2.0
/*
 * One baton. A thread that has it runs until it waits, finds a lock taken, or the dice say so; then it wakes the next
 * one's semaphore and sleeps on its own. So all of the state below needs no lock: whoever runs has it.
 */
#include "schedule.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "dice.h"

#define THREADS_MAX 32u
#define HELD_MAX 1024u
#define STEPS_MAX UINT64_C(20000000)
#define TURN_NS UINT64_C(2000000)

enum thread_state { THREAD_FREE, THREAD_READY, THREAD_WAITING, THREAD_ENDED };

struct thread {
    enum thread_state state;
    pthread_t id;
    sem_t wake;
    pthread_cond_t *cond; /* WAITING */
    void *(*run)(void *);
    void *argument;
};

struct held {
    struct io_loop *loop;
    struct io_op *op;
    void (*end)(void *context, struct io_loop *, struct io_op *);
    void *context;
    uint64_t not_before; /* turn */
};

static struct {
    struct thread threads[THREADS_MAX];
    struct held held[HELD_MAX];
    unsigned held_count;
    struct dice dice;
    uint64_t seed, steps, turns, hash, now_ns;
} run;

static _Thread_local struct thread *self;

int __real_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int __real_pthread_join(pthread_t, void **);
int __real_pthread_mutex_lock(pthread_mutex_t *);
int __real_pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *);
int __real_pthread_cond_signal(pthread_cond_t *);
int __real_pthread_cond_broadcast(pthread_cond_t *);
int __real_clock_gettime(clockid_t, struct timespec *);
int __real_io_loop_turn(struct io_loop *, int);
int __wrap_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int __wrap_pthread_join(pthread_t, void **);
int __wrap_pthread_mutex_lock(pthread_mutex_t *);
int __wrap_pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *);
int __wrap_pthread_cond_signal(pthread_cond_t *);
int __wrap_pthread_cond_broadcast(pthread_cond_t *);
int __wrap_clock_gettime(clockid_t, struct timespec *);
int __wrap_io_loop_turn(struct io_loop *, int);

/* ---- the baton ---- */

static void stuck(const char *how)
{
    (void)fprintf(stderr, "schedule %llu: %s after %llu steps, %u operations held\n", (unsigned long long)run.seed, how,
                  (unsigned long long)run.steps, run.held_count);
    abort();
}

static void step(void)
{
    if (++run.steps > STEPS_MAX)
        stuck("does not end");
}

/* One of those that can go on; `but` may be NULL. NULL when there is none. */
static struct thread *choose(const struct thread *but)
{
    struct thread *ready[THREADS_MAX];
    unsigned count = 0;
    for (unsigned i = 0; i < THREADS_MAX; i++)
        if (run.threads[i].state == THREAD_READY && &run.threads[i] != but)
            ready[count++] = &run.threads[i];
    return count ? ready[dice_roll(&run.dice, count)] : NULL;
}

static void take_baton(struct thread *thread)
{
    while (sem_wait(&thread->wake) != 0)
        continue;
}

static void pass(struct thread *next)
{
    step();
    schedule_note((uint64_t)(next - run.threads));
    if (next == self)
        return;
    (void)sem_post(&next->wake);
    take_baton(self);
}

/* Somebody else, because this thread cannot go on. */
static void pass_on(void)
{
    struct thread *next = choose(self);
    if (!next)
        stuck("nobody can go on");
    pass(next);
}

void schedule_yield(void)
{
    if (self)
        pass(choose(NULL));
}

uint32_t schedule_roll(uint32_t below)
{
    return dice_roll(&run.dice, below);
}

void schedule_note(uint64_t value)
{
    run.hash = dice_mix(run.hash ^ value) + run.hash;
}

uint64_t schedule_hash(void)
{
    return run.hash;
}

bool schedule_active(void)
{
    return self != NULL;
}

void schedule_begin(uint64_t seed)
{
    run.dice.state = dice_mix(seed);
    run.seed = run.hash = seed;
    run.steps = run.turns = 0;
    run.now_ns = UINT64_C(1000000000);
    self = &run.threads[0];
    self->state = THREAD_READY;
    (void)sem_init(&self->wake, 0, 0);
}

void schedule_end(void)
{
    for (unsigned i = 1; i < THREADS_MAX; i++)
        if (run.threads[i].state != THREAD_FREE)
            stuck("a thread is left");
    if (run.held_count)
        stuck("operations are left");
    (void)sem_destroy(&self->wake);
    self->state = THREAD_FREE;
    self = NULL;
}

/* ---- operations ---- */

void schedule_hold(struct io_loop *loop, struct io_op *op, void (*end)(void *context, struct io_loop *, struct io_op *),
                   void *context)
{
    if (run.held_count == HELD_MAX)
        stuck("too many operations");
    /* Some take so long that everything else passes them by, reads above all: they hold nobody up. */
    bool slow = dice_roll(&run.dice, op->kind == IO_READ ? 6 : 40) == 0;
    uint64_t turns = slow ? dice_roll(&run.dice, op->kind == IO_READ ? 500 : 60) : 0;
    run.held[run.held_count++] = (struct held){loop, op, end, context, run.turns + turns};
}

unsigned schedule_held(void)
{
    return run.held_count;
}

/* One of those loops, which are the calling thread's. */
static void end_one(struct io_loop *const *loops, unsigned count)
{
    unsigned i = dice_roll(&run.dice, run.held_count);
    struct held held = run.held[i];
    bool own = false;
    for (unsigned l = 0; l < count; l++)
        own |= loops[l] == held.loop;
    if (!own || held.not_before > run.turns)
        return;
    run.held[i] = run.held[--run.held_count];
    schedule_note(held.op->offset << 8 | held.op->kind);
    held.end(held.context, held.loop, held.op);
}

void schedule_turn(struct io_loop *const *loops, unsigned count)
{
    step();
    run.turns++;
    run.now_ns += TURN_NS;
    for (unsigned i = dice_roll(&run.dice, 4); i > 0 && run.held_count; i--)
        end_one(loops, count);
    schedule_yield();
    unsigned first = dice_roll(&run.dice, count);
    for (unsigned i = 0; i < count; i++)
        (void)__real_io_loop_turn(loops[(first + i) % count], 0);
}

int schedule_real_turn(struct io_loop *loop, int timeout_ms)
{
    return __real_io_loop_turn(loop, timeout_ms);
}

/* ---- what the linker puts in place of the library's ---- */

int __wrap_io_loop_turn(struct io_loop *loop, int timeout_ms)
{
    if (!self)
        return __real_io_loop_turn(loop, timeout_ms);
    schedule_turn(&loop, 1);
    return 0;
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *ts)
{
    if (!self)
        return __real_clock_gettime(clock, ts);
    *ts = (struct timespec){.tv_sec = (time_t)(run.now_ns / 1000000000u), .tv_nsec = (long)(run.now_ns % 1000000000u)};
    return 0;
}

static void *thread_main(void *argument)
{
    struct thread *thread = argument;
    take_baton(thread);
    self = thread;
    void *result = thread->run(thread->argument);
    thread->state = THREAD_ENDED;
    struct thread *next = choose(NULL);
    if (!next)
        stuck("the last thread ended");
    self = NULL;
    (void)sem_post(&next->wake);
    return result;
}

int __wrap_pthread_create(pthread_t *id, const pthread_attr_t *attributes, void *(*main)(void *), void *argument)
{
    if (!self)
        return __real_pthread_create(id, attributes, main, argument);
    struct thread *thread = run.threads;
    while (thread < run.threads + THREADS_MAX && thread->state != THREAD_FREE)
        thread++;
    if (thread == run.threads + THREADS_MAX)
        stuck("too many threads");
    thread->run = main;
    thread->argument = argument;
    (void)sem_init(&thread->wake, 0, 0);
    int r = __real_pthread_create(&thread->id, attributes, thread_main, thread);
    if (r == 0) {
        thread->state = THREAD_READY;
        *id = thread->id;
    } else {
        (void)sem_destroy(&thread->wake);
    }
    return r;
}

int __wrap_pthread_join(pthread_t id, void **ret_value)
{
    for (unsigned i = 1; self && i < THREADS_MAX; i++) {
        struct thread *thread = &run.threads[i];
        if (thread->state == THREAD_FREE || !pthread_equal(thread->id, id))
            continue;
        while (thread->state != THREAD_ENDED)
            pass_on();
        int r = __real_pthread_join(id, ret_value);
        (void)sem_destroy(&thread->wake);
        thread->state = THREAD_FREE;
        return r;
    }
    return __real_pthread_join(id, ret_value);
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex)
{
    if (!self)
        return __real_pthread_mutex_lock(mutex);
    if (dice_roll(&run.dice, 8) == 0)
        schedule_yield();
    while (pthread_mutex_trylock(mutex) == EBUSY)
        pass_on();
    return 0;
}

int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
{
    if (!self)
        return __real_pthread_cond_wait(cond, mutex);
    self->cond = cond;
    self->state = THREAD_WAITING;
    (void)pthread_mutex_unlock(mutex);
    pass_on();
    return __wrap_pthread_mutex_lock(mutex);
}

static void wake(const pthread_cond_t *cond, bool all)
{
    unsigned first = dice_roll(&run.dice, THREADS_MAX);
    for (unsigned i = 0; i < THREADS_MAX; i++) {
        struct thread *thread = &run.threads[(first + i) % THREADS_MAX];
        if (thread->state != THREAD_WAITING || thread->cond != cond)
            continue;
        thread->state = THREAD_READY;
        if (!all)
            return;
    }
}

int __wrap_pthread_cond_signal(pthread_cond_t *cond)
{
    if (!self)
        return __real_pthread_cond_signal(cond);
    wake(cond, false);
    return 0;
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *cond)
{
    if (!self)
        return __real_pthread_cond_broadcast(cond);
    wake(cond, true);
    return 0;
}
