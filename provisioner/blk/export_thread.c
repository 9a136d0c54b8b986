// SPDX-License-Identifier: Apache-2.0
// I/O threads of exports: life, CPUs, counters.
#include "provisioner/blk/export_thread.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>

#include "common/checked.h"

#define STACK_BYTES (256 * KIB)

/* ---- CPUs ---- */

unsigned export_cpus(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) < 0)
        return 1;
    return (unsigned)MAX(CPU_COUNT(&set), 1);
}

int export_cpu(unsigned index)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) < 0)
        return -1;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET((size_t)cpu, &set) && index-- == 0)
            return cpu;
    }
    return -1;
}

static void pin(int cpu)
{
    cpu_set_t set;
    if (cpu < 0)
        return;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    (void)sched_setaffinity(0, sizeof(set), &set);
}

/* ---- life ---- */

static int thread_open(struct export_thread *thread)
{
    const struct io_loop_options options = {.engine = thread->engine};
    int r = io_loop_create(&options, &thread->loop, &thread->err);
    if (r < 0)
        return r;
    (void)io_loop_restrict(thread->loop); /* a second fence: seccomp and Landlock stand without it */
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
    struct export_thread *thread = argument;
    pin(thread->cpu);
    int r = thread_open(thread);
    thread->result = r;
    (void)sem_post(&thread->ready);
    if (r < 0)
        return NULL;
    (void)io_loop_run(thread->loop);
    wait_for(&thread->release);
    thread->queue = image_queue_destroy(thread->queue);
    thread->loop = io_loop_destroy(thread->loop);
    return NULL;
}

// Signals are for the process's main thread.
static int create_quietly(struct export_thread *thread)
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

int export_thread_start(struct export_thread *thread, struct image *image, enum io_engine engine, int cpu,
                        const char *name, struct error *err)
{
    *thread = (struct export_thread){.image = image, .engine = engine, .cpu = cpu};
    (void)sem_init(&thread->ready, 0, 0);
    (void)sem_init(&thread->release, 0, 0);
    int r = create_quietly(thread);
    if (r < 0) {
        (void)sem_destroy(&thread->ready);
        (void)sem_destroy(&thread->release);
        return error_sys(err, -r, "start the I/O thread '%s'", name);
    }
    (void)pthread_setname_np(thread->id, name);
    wait_for(&thread->ready);
    (void)sem_destroy(&thread->ready);
    if (thread->result < 0) {
        (void)pthread_join(thread->id, NULL);
        (void)sem_destroy(&thread->release);
        return error_copy(err, &thread->err);
    }
    return 0;
}

void export_thread_join(struct export_thread *thread)
{
    (void)sem_post(&thread->release);
    (void)pthread_join(thread->id, NULL);
    (void)sem_destroy(&thread->release);
}

/* ---- counters ---- */

void export_count_request(struct export_thread *thread, enum image_op op, uint64_t length, int result)
{
    struct export_counters *c = &thread->counters;
    if (result < 0) {
        export_count(&c->errors, 1);
        return;
    }
    switch (op) {
    case IMAGE_READ:
        export_count(&c->reads, 1);
        export_count(&c->read_bytes, length);
        break;
    case IMAGE_WRITE:
        export_count(&c->writes, 1);
        export_count(&c->write_bytes, length);
        break;
    case IMAGE_FLUSH:
        export_count(&c->flushes, 1);
        break;
    case IMAGE_DISCARD:
    case IMAGE_WRITE_ZEROES:
        export_count(&c->discards, 1);
        break;
    case IMAGE_STATUS:
        break;
    }
}

static uint64_t counter(const uint64_t *value)
{
    return __atomic_load_n(value, __ATOMIC_RELAXED);
}

void export_counters_add(const struct export_thread *thread, struct export_stats *stats)
{
    const struct export_counters *c = &thread->counters;
    stats->reads += counter(&c->reads);
    stats->writes += counter(&c->writes);
    stats->flushes += counter(&c->flushes);
    stats->discards += counter(&c->discards);
    stats->read_bytes += counter(&c->read_bytes);
    stats->write_bytes += counter(&c->write_bytes);
    stats->errors += counter(&c->errors);
}
