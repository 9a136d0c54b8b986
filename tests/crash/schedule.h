/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A deterministic schedule: from schedule_begin to schedule_end only one of the program's threads runs at a time, and a
 * seed decides which one goes on at each lock, wait and operation on a file; which held operation ends next; and how
 * time passes. The same seed gives the same run, operation for operation; schedule_hash tells.
 *
 * It works by the linker: pthread_create, _join, mutex_lock, cond_wait, cond_signal and cond_broadcast, clock_gettime and
 * io_loop_turn are replaced (--wrap) in programs that link this. Outside of a schedule they are what they always are.
 *
 * A schedule in which nobody can go on, or which does not end, prints its seed and aborts the program.
 */
#ifndef PLATTER_TESTS_CRASH_SCHEDULE_H
#define PLATTER_TESTS_CRASH_SCHEDULE_H

#include <stdbool.h>
#include <stdint.h>

#include "backends/io/io.h"

/* The calling thread drives all loops of the schedule. */
void schedule_begin(uint64_t seed);
/* All threads that began within it must have been joined, and all held operations ended. */
void schedule_end(void);
/* Is the calling thread under a schedule? */
bool schedule_active(void);

/* The schedule's dice. */
uint32_t schedule_roll(uint32_t below);
/* Perhaps somebody else runs now. */
void schedule_yield(void);

/* Keep `op` of `loop` until its turn comes; then end(context, loop, op) is called once. */
void schedule_hold(struct io_loop *loop, struct io_op *op, void (*end)(void *context, struct io_loop *, struct io_op *),
                   void *context);
/* The number of operations held. */
unsigned schedule_held(void);

/* Something happens: an operation ends, another thread runs, the loops turn. */
void schedule_turn(struct io_loop *const *loops, unsigned count);
/* A turn of the loop itself, past the schedule. */
int schedule_real_turn(struct io_loop *loop, int timeout_ms);

/* Mix `value` into the hash of the run, which begins with the schedule. */
void schedule_note(uint64_t value);
uint64_t schedule_hash(void);

#endif
