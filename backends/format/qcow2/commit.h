/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing changed tables back, in groups.
 *
 * A commit: under the layer's lock the dirty slices and L1 blocks are copied (the snapshot that will be written) and
 * the freed clusters are tied to it; if any of that replaces older visible content, the file is flushed, which
 * makes durable the data it points to; the copies are written; the file is flushed again. What changes after the
 * copy belongs to the next commit. More than the copies' space is done in rounds, each with its own first flush.
 *
 * One commit at a time. It is a state machine on the loop of the queue that started it; flushes that come meanwhile
 * wait together for the next one.
 */
#ifndef PLATTER_FORMAT_QCOW2_COMMIT_H
#define PLATTER_FORMAT_QCOW2_COMMIT_H

#include "backends/format/qcow2/qcow2.h"

struct chunk;
struct data_queue;

#define COMMIT_DELAY_NS UINT64_C(3000000000) /* from the first unflushed change to the commit that nobody asked for */

/* Control thread. */
int commit_create(struct qcow2 *q, struct commit **ret_commit, struct error *err);
struct commit *commit_destroy(struct commit *commit);
/* The layer is frozen: no commit comes any more; its memory goes, but for what posted tasks look at. */
void commit_retire(struct commit *commit);

/* ---- locked */
/* The commits from now on need the data that was written so far to be durable first. */
void commit_need_barrier(struct qcow2 *q);
/* L1 entry `index` changed in memory. */
void commit_l1_dirty(struct qcow2 *q, uint32_t index);
/* One is under way: what it collected is not durable yet. */
/* Any thread, no lock: the last one found no space for tables, and all stays dirty. */
bool commit_stuck(const struct qcow2 *q);
bool commit_running(const struct qcow2 *q);
/* Metadata waits to be written. */
bool commit_pending(const struct qcow2 *q);
/* So much waits that a commit should run although nobody asked. */
bool commit_pressure(const struct qcow2 *q);
/* Have a commit run when there is something dirty. */
void commit_want(struct qcow2 *q);
/* Have one run soon on some queue's loop, from any thread. */
void commit_soon(struct qcow2 *q);
/* Park the chunk until a commit that begins later has ended: CHUNK_PARKED. */
int commit_wait(struct chunk *chunk);

/* ---- loop's thread, unlocked */
/* Start a commit here if none runs and someone waits for one or wants one. */
void commit_poke(struct data_queue *queue);
/* The same after making one wanted. */
void commit_force(struct data_queue *queue);
/* The queue is about to go: wait (turning its loop) until no commit runs on it. */
void commit_leave(struct data_queue *queue);

#endif
