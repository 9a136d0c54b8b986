/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The overlap guard: where the metadata of a writable image lies, so that neither the guest's data nor other metadata is
 * ever written over it, whatever the tables and counts of a damaged or hostile image say.
 *
 * A set of host clusters, each with the kind of table that it belongs to: header, active L1 and L2 tables, refcount table
 * and blocks, snapshot table and the snapshots' L1 tables, bitmap directory. Not the L2 tables that only snapshots use.
 *   guest data written in place    must hit nothing of the set (guard_data)
 *   a table about to be written    must lie in clusters of its own kind (guard_table)
 *   clusters taken or freed        must hit nothing (guard_check)
 *   L2 entries read from disk      must point at nothing (guard_entries)
 * What breaks this is a violation: the image is fenced (reads go on, all else ends with -EUCLEAN), the header's corrupt bit
 * is set (version 3) and the first one is logged.
 *
 * Any thread may ask, without a lock. Changes take a lock of the guard's own, inside all others. Memory: at most 64 bytes
 * for each entry of L1 and refcount table. A layer that is not writable has no guard: everything passes.
 */
#ifndef PLATTER_FORMAT_QCOW2_GUARD_H
#define PLATTER_FORMAT_QCOW2_GUARD_H

#include "backends/format/qcow2/qcow2.h"

/* A run of host clusters. */
struct extent {
    uint64_t cluster;
    uint64_t count;
};

enum guard_kind {
    GUARD_NONE,
    GUARD_HEADER,
    GUARD_L1,
    GUARD_L2,        /* the image's own */
    GUARD_L2_SHARED, /* with a snapshot: read, never written */
    GUARD_REFTABLE,
    GUARD_REFBLOCK,
    GUARD_SNAPSHOTS,
    GUARD_SNAPSHOT_L1,
    GUARD_BITMAPS,
    GUARD_REMOVED = 15, /* its own */
};

/* Does [offset, offset + length) touch the header, L1, refcount table or snapshot table? Any thread that may read
 * q->header. */
bool guard_is_fixed(const struct qcow2 *q, uint64_t offset, uint64_t length);

/* ---- control thread, at a writable open, or drained ---- */

/* Note all that the tables in memory name; q->refcounts and q->l1 must be ready. Code "corrupt-image" where two of them
 * share a cluster. */
int guard_create(struct qcow2 *q, struct error *err);
/* NULL is allowed. Returns NULL. */
struct guard *guard_destroy(struct guard *guard);

/* ---- any thread ---- */

/* Does [offset, offset + length) touch metadata? */
bool guard_hits(const struct qcow2 *q, uint64_t offset, uint64_t length);
/* 0, or -EUCLEAN after a violation. */
int guard_data(struct qcow2 *q, uint64_t offset, uint64_t length);
int guard_table(struct qcow2 *q, enum guard_kind kind, uint64_t offset, uint64_t length);
/* An L2 table's `bytes` as read from disk. */
void guard_entries(struct qcow2 *q, const void *bytes, size_t length);
/* hits[i] = whether extents[i] touches metadata, which is a violation. Returns the number of hits. */
size_t guard_check(struct qcow2 *q, const struct extent *extents, size_t count, bool *hits);
void guard_violation(struct qcow2 *q, const char *what, uint64_t offset);

/* Room for `clusters` more, apart from the L2 tables of the `l1_entries` that the image has: those have theirs always. May
 * allocate. -ENOMEM. */
int guard_reserve(struct qcow2 *q, uint64_t l1_entries, uint64_t clusters);
/* Does not allocate. A cluster that is in the set already is a violation. */
void guard_add(struct qcow2 *q, enum guard_kind kind, uint64_t offset, uint64_t length);
void guard_remove(struct qcow2 *q, uint64_t offset, uint64_t length);

/* One past the last byte of everything guarded. */
uint64_t guard_end(const struct qcow2 *q);

#endif
