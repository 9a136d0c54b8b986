/* SPDX-License-Identifier: Apache-2.0 */
/* The overlap guard inside: guard.c (the set, the questions) and guard_open.c (what goes into it). */
#ifndef PLATTER_FORMAT_QCOW2_GUARD_SET_H
#define PLATTER_FORMAT_QCOW2_GUARD_SET_H

#include "backends/format/qcow2/guard.h"
#include "backends/format/qcow2/keeper.h"

struct guard_table;

struct guard {
    struct qcow2 *q;
    _Atomic(struct guard_table *) table;
    pthread_mutex_t lock; /* for changes */
    uint64_t used, live;  /* slots not empty; of these not removed */

    _Atomic bool violated;
    const char *what; /* of the first violation, for the job */
    uint64_t where;
    struct keeper_job mark;
};

int guard_set_create(struct guard **ret_guard);
/* There must be room. False when one of the clusters was there already (and may not be twice). */
bool guard_set_add(struct guard *guard, enum guard_kind kind, uint64_t first, uint64_t count);

#endif
