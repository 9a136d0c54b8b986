/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An I/O thread of an export: one loop and one queue of the image. The loop is locked to I/O operations where the
 * kernel can do that. Everything on the loop belongs to the thread; others reach it by io_loop_post.
 */
#ifndef PLATTER_PROVISIONER_BLK_EXPORT_THREAD_H
#define PLATTER_PROVISIONER_BLK_EXPORT_THREAD_H

#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>

#include "backends/format/image.h"
#include "backends/io/io.h"
#include "common/error.h"
#include "provisioner/blk/export.h"

/* Written by the I/O thread only, with relaxed stores; read by anyone. */
struct export_counters {
    uint64_t reads, writes, flushes, discards, read_bytes, write_bytes, errors;
};

struct export_thread {
    struct io_loop *loop;      /* valid while the thread runs */
    struct image_queue *queue; /* the same */
    struct export_counters counters;

    pthread_t id;
    struct image *image;
    enum io_engine engine;
    int cpu;
    sem_t ready;
    sem_t release; /* nobody posts to the loop any more: it may go */
    int result;
    struct error err;
};

/* Start it; returns once the loop and the image's queue exist. `cpu`: the only CPU it may use, or -1 for any (a CPU
 * that cannot be had is no error). `name`: at most 15 bytes. May block. */
int export_thread_start(struct export_thread *thread, struct image *image, enum io_engine engine, int cpu,
                        const char *name, struct error *err);
/* Wait for its end, which the thread itself brings about: io_loop_stop on its own loop, with nothing in flight. Its loop
 * stays until this is called, so that a post which brought the end about may return first. */
void export_thread_join(struct export_thread *thread);

/* Number of CPUs that this process may use, and the index-th of them. */
unsigned export_cpus(void);
int export_cpu(unsigned index);

/* I/O thread: add to one of its own counters. */
static inline void export_count(uint64_t *counter, uint64_t value)
{
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + value, __ATOMIC_RELAXED);
}

/* I/O thread: count one request that ended with `result`. */
void export_count_request(struct export_thread *thread, enum image_op op, uint64_t length, int result);
/* Any thread: add this thread's counters to `stats`. */
void export_counters_add(const struct export_thread *thread, struct export_stats *stats);

#endif
