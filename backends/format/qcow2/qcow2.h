/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The qcow2 layer, shared by its own files only. Specification: qemu's docs/interop/qcow2.rst ("the specification"
 * below, with its section names).
 *
 * Threads and what each owns:
 *   loops     map, read, write, allocate from what is reserved, load slices, commit (asynchronous, on a loop)
 *   keeper    one thread of each writable layer, blocking I/O: reference counts, reserving runs, giving freed
 *             clusters back, copying shared tables (keeper.h, refcount.h, allocator.h)
 *   control   open, close, resize (drained)
 *
 * Reading a mapped cluster: L1 entry and cached slice are read with atomic loads under the slice's sequence count
 * (slice.h); no lock. Everything that changes a table in memory holds `lock`, for a moment and never across I/O.
 *
 * Ordering. A reserved cluster has its reference count (1), its place inside the file's length and its zeros
 * durable before anyone may take it. So a table entry that points to a reserved cluster may reach the disk in any order
 * with the data: until the next flush the guest may see old (zeros) or new, nothing else. Only where older content
 * was visible before (a layer below, a compressed or shared cluster, zero-flagged space that keeps its cluster) must
 * the data be durable first: those updates set `needs_barrier`. Freed clusters ride with the commit that makes their
 * unlinking durable, then wait for a grace period, then are punched, then lose their reference.
 */
#ifndef PLATTER_FORMAT_QCOW2_QCOW2_H
#define PLATTER_FORMAT_QCOW2_QCOW2_H

#include <pthread.h>
#include <stdatomic.h>

#include "backends/format/layer.h"
#include "backends/format/qcow2/header.h"

struct allocator;
struct keeper;
struct refcounts;
struct slice_cache;
struct commit;
struct data;
struct guard;

struct qcow2 {
    struct layer base;
    struct header header; /* as on disk, with every unknown extension kept (header.h) */

    uint32_t cluster_bits;
    uint64_t cluster_size;
    uint32_t entry_size;      /* of L2: 8, or 16 with extended L2 */
    uint32_t l2_bits;         /* log2 of entries in an L2 table */
    uint64_t subcluster_size; /* cluster_size, or a 32nd of it with extended L2 */

    /* Active L1, big endian as on disk; entries are read with atomic loads, stored under `lock`. l1_entries covers the
     * virtual size; the array is replaced by resize only, while the image is drained. */
    _Atomic uint64_t *l1;
    uint32_t l1_entries;
    uint64_t l1_offset; /* bytes in the file */

    uint64_t file_length_at_open; /* bytes: what lies below may hold old content even where the count is 0 */

    pthread_mutex_t lock;
    struct slice_cache *slices; /* data path */
    struct data *data;          /* data path */
    struct commit *commit;      /* data path; NULL when opened read-only */

    /* Under `lock`: written back for good by a snapshot. Only reads come; nothing is committed, so that what follows may
     * go while the queues stay. */
    bool frozen;
    struct keeper *keeper;       /* NULL when read-only or frozen */
    struct refcounts *refcounts; /* the same; keeper thread, or control thread while drained */
    struct allocator *allocator; /* the same */
    struct guard *guard;         /* NULL when opened read-only */
};

/* ---- the data path (data.c and its neighbours), called by qcow2.c ------------------------------------------ */

/* Control thread. Sets up slices and commit after header, L1 and allocator are ready; undone by qcow2_data_close. */
int qcow2_data_open(struct qcow2 *q, size_t cache_bytes, struct error *err);
void qcow2_data_close(struct qcow2 *q);

/* Blocking commit of everything dirty: control thread at close and at resize (drained), or the keeper when no queue is
 * there. Ends with a flush of the file. */
int qcow2_commit_blocking(struct qcow2 *q);
/* Control thread, frozen and no request from before in flight: what only commits and writing need is given back. */
void qcow2_data_retire(struct qcow2 *q);
/* Control thread, frozen: hold no more than so many bytes of tables. */
void qcow2_data_limit(struct qcow2 *q, size_t cache_bytes);
/* Any thread: have a commit run soon on some queue's loop (for freed clusters that no flush came for). */
void qcow2_commit_soon(struct qcow2 *q);

int qcow2_queue_create(struct layer *layer, struct image_queue *queue, struct layer_queue **ret_lq, struct error *err);
void qcow2_queue_destroy(struct layer_queue *lq);
void qcow2_submit(struct layer_queue *lq, struct image_request *request);

#endif
