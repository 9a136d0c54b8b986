/* SPDX-License-Identifier: Apache-2.0 */
/* A thread for work of a layer that may block. Jobs run one after another in the order of submission. */
#ifndef PLATTER_FORMAT_QCOW2_KEEPER_H
#define PLATTER_FORMAT_QCOW2_KEEPER_H

#include "backends/io/io.h"
#include "common/error.h"

struct keeper;

struct keeper_job {
    int (*run)(struct keeper_job *job);               /* keeper thread; may block */
    void (*done)(struct keeper_job *job, int result); /* on `loop`; NULL loop: on the keeper thread; may be NULL */
    struct io_loop *loop;
    int result; /* the keeper's own, as is all below */
    struct io_task task;
    struct keeper_job *next;
};

int keeper_create(const char *name, struct keeper **ret_keeper, struct error *err);
/* Runs what is queued, then ends the thread. NULL is allowed. Returns NULL. */
struct keeper *keeper_destroy(struct keeper *keeper);
/* Any thread; the job is caller-owned until done(). Never fails. */
void keeper_submit(struct keeper *keeper, struct keeper_job *job);
/* A thread that may block: run and wait. */
int keeper_call(struct keeper *keeper, struct keeper_job *job);

#endif
