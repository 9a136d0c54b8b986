/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The overlap guard: what no allocation and no free may touch, whatever the reference counts of a damaged or hostile
 * image say. The header, the active L1 table, the refcount table and its blocks, the snapshot table, and every L2 table
 * that the active L1 names.
 */
#ifndef PLATTER_FORMAT_QCOW2_GUARD_H
#define PLATTER_FORMAT_QCOW2_GUARD_H

#include "backends/format/qcow2/qcow2.h"

/* A run of host clusters. */
struct extent {
    uint64_t cluster;
    uint64_t count;
};

/* Does [offset, offset + length) touch the header, L1, refcount table or snapshot table? Any thread that may read
 * q->header. */
bool guard_is_fixed(const struct qcow2 *q, uint64_t offset, uint64_t length);

/* hits[i] = whether extents[i] touches any of the above, blocks and L2 tables included. The extents must be sorted and
 * disjoint. Holder of the work lock (reserve.h). Returns the number of hits. */
size_t guard_check(const struct qcow2 *q, const struct extent *extents, size_t count, bool *hits);

/* One past the last byte of everything guarded. Holder of the work lock. */
uint64_t guard_end(const struct qcow2 *q);

#endif
