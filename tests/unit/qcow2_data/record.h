/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A seam that records every change to a file, and makes from the record what a power cut could leave: all that a flush
 * covers, and any part of the rest, down to single sectors.
 */
#ifndef PLATTER_TESTS_UNIT_QCOW2_DATA_RECORD_H
#define PLATTER_TESTS_UNIT_QCOW2_DATA_RECORD_H

#include <pthread.h>
#include <stdatomic.h>

#include "backends/io/seam.h"

struct record_entry {
    enum io_seam_kind kind;
    uint64_t offset, length;
    uint8_t *data;         /* writes */
    uint64_t issued, done; /* moments; done 0 = not yet */
    bool failed, blocking;
    pthread_t thread; /* that issued it */
};

struct recorder {
    struct io_seam seam; /* first */
    pthread_mutex_t lock;
    struct record_entry *entries;
    size_t count, room;
    _Atomic uint64_t clock; /* the next moment; the test takes moments of its own */
    uint8_t *initial;
    uint64_t initial_length;
};

/* Remember what `path` holds now, as it is before the first recorded change. */
void recorder_init(struct recorder *recorder, const char *path);
void recorder_done(struct recorder *recorder);
uint64_t recorder_now(struct recorder *recorder);

enum survive { SURVIVE_NONE, SURVIVE_ALL, SURVIVE_SOME, SURVIVE_TORN };

/* Write to `path` what the file may hold after a cut at `moment`, with what was not flushed surviving as said. */
void recorder_cut(struct recorder *recorder, uint64_t moment, enum survive survive, unsigned *seed, const char *path);

#endif
