// SPDX-License-Identifier: Apache-2.0
/*
 * A writable layer becomes a frozen one under a snapshot. Once everything is written back the file is a complete image
 * (nothing marks a file as open, and what is reserved is a leak until it is given back); from the moment `frozen` is
 * set, timers and posted tasks that still come find nothing to do. So keeper, reaper, allocator and reference counts can
 * go afterwards, while the queues go on reading through the same tables.
 */
#include <stdatomic.h>

#include "backends/format/qcow2/allocator.h"
#include "backends/format/qcow2/control.h"
#include "backends/format/qcow2/keeper.h"
#include "backends/format/qcow2/refcount.h"
#include "common/cleanup.h"

bool qcow2_is_empty(const struct layer *layer)
{
    const struct qcow2 *q = (const struct qcow2 *)layer;
    for (uint32_t i = 0; i < q->l1_entries; i++) {
        if (atomic_load_explicit(&q->l1[i], memory_order_relaxed))
            return false;
    }
    return q->header.nb_snapshots == 0;
}

int qcow2_freeze(struct layer *layer, struct error *err)
{
    struct qcow2 *q = (struct qcow2 *)layer;
    int r = qcow2_commit_blocking(q);
    if (r < 0)
        return error_sys(err, r, "write a qcow2 layer back");
    LOCK_SCOPE(&q->lock);
    q->frozen = true;
    return 0;
}

void qcow2_retire(struct layer *layer)
{
    struct qcow2 *q = (struct qcow2 *)layer;
    /* Whoever ended the last request before the freeze may still be on its way out. */
    image_grace(layer->image);
    /* What it cannot write back stays counted: leaks. */
    (void)allocator_destroy(q->allocator);
    q->allocator = NULL;
    q->keeper = keeper_destroy(q->keeper);
    q->refcounts = refcounts_destroy(q->refcounts);
    qcow2_data_retire(q);
}

void qcow2_limit_cache(struct layer *layer, size_t bytes)
{
    qcow2_data_limit((struct qcow2 *)layer, bytes);
}
