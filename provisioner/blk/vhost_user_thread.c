// SPDX-License-Identifier: Apache-2.0
// I/O threads: life and calls.
#include "provisioner/blk/vhost_user_thread.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/checked.h"

#define STACK_BYTES (256 * KIB)

static int thread_open(struct vhost_user_thread *thread)
{
    const struct io_loop_options options = {.engine = thread->engine};
    int r = io_loop_create(&options, &thread->loop, &thread->err);
    if (r < 0)
        return r;
    (void)io_loop_restrict(thread->loop); // a second wall; not every host can build it
    r = image_queue_create(thread->image, thread->loop, &thread->queue, &thread->err);
    if (r < 0)
        thread->loop = io_loop_destroy(thread->loop);
    return r;
}

static void wait_for(sem_t *semaphore)
{
    while (sem_wait(semaphore) < 0 && errno == EINTR)
        ;
}

static void *thread_main(void *argument)
{
    struct vhost_user_thread *thread = argument;
    int r = thread_open(thread);
    thread->result = r;
    (void)sem_post(&thread->ready);
    if (r < 0)
        return NULL;
    // A ring that fails takes its requests along: nothing is left that could answer or end them. A new process resumes
    // what is in flight; this one can only make room for it.
    if (io_loop_run(thread->loop) < 0)
        abort();
    wait_for(&thread->stopped); // whoever stopped the loop may still be waking it
    thread->queue = image_queue_destroy(thread->queue);
    thread->loop = io_loop_destroy(thread->loop);
    return NULL;
}

// Signals are for the process's main thread.
static int create_quietly(struct vhost_user_thread *thread)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    (void)sigfillset(&all);
    (void)pthread_attr_init(&attributes);
    (void)pthread_attr_setstacksize(&attributes, STACK_BYTES);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    int r = pthread_create(&thread->id, &attributes, thread_main, thread);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    (void)pthread_attr_destroy(&attributes);
    return -r;
}

int vhost_user_thread_start(struct vhost_user_thread *thread, struct image *image, enum io_engine engine,
                            unsigned number, struct error *err)
{
    *thread = (struct vhost_user_thread){.image = image, .engine = engine};
    (void)sem_init(&thread->ready, 0, 0);
    (void)sem_init(&thread->stopped, 0, 0);
    int r = create_quietly(thread);
    if (r < 0) {
        (void)sem_destroy(&thread->ready);
        return error_sys(err, -r, "start a vhost-user I/O thread");
    }
    char name[16];
    (void)snprintf(name, sizeof(name), "vhost-io-%u", number);
    (void)pthread_setname_np(thread->id, name);
    wait_for(&thread->ready);
    (void)sem_destroy(&thread->ready);
    if (thread->result < 0) {
        (void)pthread_join(thread->id, NULL);
        return error_copy(err, &thread->err);
    }
    return 0;
}

void vhost_user_thread_stop(struct vhost_user_thread *thread)
{
    io_loop_stop(thread->loop);
    (void)sem_post(&thread->stopped);
    (void)pthread_join(thread->id, NULL);
}

static void call_run(struct io_task *task)
{
    struct vhost_user_call *call = (void *)((char *)task - offsetof(struct vhost_user_call, task));
    call->run(call);
}

int vhost_user_thread_call(struct vhost_user_thread *thread, void (*run)(struct vhost_user_call *call), void *object)
{
    struct vhost_user_call call = {.run = run, .object = object, .task = {.run = call_run}};
    (void)sem_init(&call.done, 0, 0);
    io_loop_post(thread->loop, &call.task);
    wait_for(&call.done);
    (void)sem_destroy(&call.done);
    return call.result;
}

void vhost_user_call_done(struct vhost_user_call *call, int result)
{
    call->result = result;
    (void)sem_post(&call->done);
}
