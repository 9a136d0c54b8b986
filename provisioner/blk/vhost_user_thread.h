/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An I/O thread of the vhost-user export: one loop and one queue of the image, for the rings that were given to it.
 * The control thread reaches it by calls, functions that it runs on its own loop while the caller waits.
 */
#ifndef PLATTER_PROVISIONER_BLK_VHOST_USER_THREAD_H
#define PLATTER_PROVISIONER_BLK_VHOST_USER_THREAD_H

#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>

#include "backends/format/image.h"
#include "backends/io/io.h"
#include "common/error.h"

/* Written by the I/O thread only, with relaxed stores; read by anyone. */
struct vhost_user_counters {
    uint64_t reads, writes, flushes, discards, read_bytes, write_bytes, errors;
};

struct vhost_user_thread {
    struct io_loop *loop;      /* valid while the thread runs; its own thread's, except for posting */
    struct image_queue *queue; /* the same */
    struct vhost_user_counters counters;

    pthread_t id;
    struct image *image;
    enum io_engine engine;
    sem_t ready, stopped;
    int result;
    struct error err;
};

/* Start it; returns once the loop and the image's queue exist. */
int vhost_user_thread_start(struct vhost_user_thread *thread, struct image *image, enum io_engine engine,
                            unsigned number, struct error *err);
/* End it. No request may be in flight. */
void vhost_user_thread_stop(struct vhost_user_thread *thread);

struct vhost_user_call {
    void (*run)(struct vhost_user_call *call); /* on the I/O thread; ends, then or later, by vhost_user_call_done */
    void *object;
    int result;
    struct io_task task;
    sem_t done;
};

/* Any other thread: let `run` work on `object` and wait until it is done. Returns the call's result. */
int vhost_user_thread_call(struct vhost_user_thread *thread, void (*run)(struct vhost_user_call *call), void *object);
/* I/O thread. */
void vhost_user_call_done(struct vhost_user_call *call, int result);

/* I/O thread: add to one of its own counters. */
static inline void counter_add(uint64_t *counter, uint64_t value)
{
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + value, __ATOMIC_RELAXED);
}

#endif
