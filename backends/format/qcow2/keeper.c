// SPDX-License-Identifier: Apache-2.0
/*
 * The keeper: one thread and a queue of jobs, first come first served. Jobs may block, so nothing that serves requests ever
 * waits for one; results go back as tasks of the submitter's loop.
 */
#include "backends/format/qcow2/keeper.h"

#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>

#include "common/cleanup.h"

struct keeper {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct keeper_job *first, **last;
    bool stop;
};

static void report_done(struct io_task *task)
{
    struct keeper_job *job = (struct keeper_job *)((char *)task - offsetof(struct keeper_job, task));
    job->done(job, job->result);
}

/* The next job, or NULL when told to stop and nothing is left. */
static struct keeper_job *next_job(struct keeper *keeper)
{
    LOCK_SCOPE(&keeper->lock);
    while (!keeper->first && !keeper->stop)
        (void)pthread_cond_wait(&keeper->wake, &keeper->lock);
    struct keeper_job *job = keeper->first;
    if (job) {
        keeper->first = job->next;
        if (!keeper->first)
            keeper->last = &keeper->first;
    }
    return job;
}

static void *keeper_main(void *arg)
{
    struct keeper *keeper = arg;
    for (struct keeper_job *job = next_job(keeper); job; job = next_job(keeper)) {
        /* A job without done() may submit itself again from run(), or be gone after it: do not touch it then. */
        void (*done)(struct keeper_job *, int) = job->done;
        struct io_loop *loop = job->loop;
        int result = job->run(job);
        if (!done)
            continue;
        job->result = result;
        if (!loop) {
            done(job, result);
            continue;
        }
        job->task.run = report_done;
        io_loop_post(loop, &job->task);
    }
    return NULL;
}

int keeper_create(const char *name, struct keeper **ret_keeper, struct error *err)
{
    struct keeper *keeper = calloc(1, sizeof(*keeper));
    if (!keeper)
        return error_sys(err, ENOMEM, "keeper");
    keeper->last = &keeper->first;
    (void)pthread_mutex_init(&keeper->lock, NULL);
    (void)pthread_cond_init(&keeper->wake, NULL);
    int r = pthread_create(&keeper->thread, NULL, keeper_main, keeper);
    if (r != 0) {
        (void)pthread_cond_destroy(&keeper->wake);
        (void)pthread_mutex_destroy(&keeper->lock);
        free(keeper);
        return error_sys(err, r, "keeper thread");
    }
    (void)pthread_setname_np(keeper->thread, name); /* a name too long leaves the parent's: cosmetic */
    *ret_keeper = keeper;
    return 0;
}

struct keeper *keeper_destroy(struct keeper *keeper)
{
    if (!keeper)
        return NULL;
    (void)pthread_mutex_lock(&keeper->lock);
    keeper->stop = true;
    (void)pthread_cond_signal(&keeper->wake);
    (void)pthread_mutex_unlock(&keeper->lock);
    (void)pthread_join(keeper->thread, NULL);
    (void)pthread_cond_destroy(&keeper->wake);
    (void)pthread_mutex_destroy(&keeper->lock);
    free(keeper);
    return NULL;
}

void keeper_submit(struct keeper *keeper, struct keeper_job *job)
{
    LOCK_SCOPE(&keeper->lock);
    job->next = NULL;
    *keeper->last = job;
    keeper->last = &job->next;
    (void)pthread_cond_signal(&keeper->wake);
}

/* ---- keeper_call: a job that wraps the caller's and wakes it ------------------------------------------------- */

struct call {
    struct keeper_job job;
    struct keeper_job *inner;
    pthread_mutex_t lock;
    pthread_cond_t ended;
    bool done;
};

static int call_run(struct keeper_job *job)
{
    struct call *call = (struct call *)job;
    return call->inner->run(call->inner);
}

static void call_done(struct keeper_job *job, int result)
{
    struct call *call = (struct call *)job;
    LOCK_SCOPE(&call->lock);
    call->inner->result = result;
    call->done = true;
    (void)pthread_cond_signal(&call->ended);
}

int keeper_call(struct keeper *keeper, struct keeper_job *job)
{
    struct call call = {.job = {.run = call_run, .done = call_done}, .inner = job};
    (void)pthread_mutex_init(&call.lock, NULL);
    (void)pthread_cond_init(&call.ended, NULL);
    keeper_submit(keeper, &call.job);
    (void)pthread_mutex_lock(&call.lock);
    while (!call.done)
        (void)pthread_cond_wait(&call.ended, &call.lock);
    (void)pthread_mutex_unlock(&call.lock);
    (void)pthread_cond_destroy(&call.ended);
    (void)pthread_mutex_destroy(&call.lock);
    return job->result;
}
