// SPDX-License-Identifier: Apache-2.0
/*
 * Growing an image, drained: a longer L1 table where the old one does not reach, durable before the header names it;
 * place and size change together, in one sector. The old table is given back once the header is durable.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/format/qcow2/allocator.h"
#include "backends/format/qcow2/control.h"
#include "backends/format/qcow2/reserve.h"
#include "common/checked.h"
#include "common/cleanup.h"

/* Header fields of the new state; if they may or may not have reached the disk, the image is fenced. */
static int switch_header(struct qcow2 *q, uint64_t size, uint64_t l1_offset, uint32_t l1_size)
{
    struct header next = q->header;
    next.size = size;
    next.l1_offset = l1_offset;
    next.l1_size = l1_size;
    int r = header_write(q->base.file, &next);
    if (r == 0)
        r = io_file_flush(q->base.file);
    if (r < 0) {
        image_fail(q->base.image, r);
        return r;
    }
    q->header = next;
    return 0;
}

/* The new table in memory and on disk, durable. */
static int write_l1(struct qcow2 *q, uint64_t offset, uint64_t bytes, _Atomic uint64_t **ret_l1)
{
    CLEANUP_FREE void *table = aligned_alloc(4096, align_up(bytes, 4096));
    if (!table)
        return -ENOMEM;
    memset(table, 0, bytes);
    memcpy(table, (const void *)q->l1, (size_t)q->l1_entries * 8);
    int r = io_file_write(q->base.file, table, bytes, offset);
    if (r < 0)
        return r;
    r = io_file_flush(q->base.file);
    if (r < 0) {
        image_fail(q->base.image, r);
        return r;
    }
    *ret_l1 = steal_ptr(&table);
    return 0;
}

static void drop_clusters(struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
    struct extent extent = {.cluster = offset >> q->cluster_bits, .count = div_round_up(bytes, q->cluster_size)};
    if (bytes > 0)
        release_extents(q->allocator, &extent, 1);
}

static int move_l1(struct qcow2 *q, uint64_t size, uint32_t entries, struct error *err)
{
    uint64_t offset = 0;
    uint64_t bytes = align_up((uint64_t)entries * 8, q->cluster_size);
    int r = guard_reserve(q, entries, bytes >> q->cluster_bits);
    if (r < 0)
        return error_sys(err, r, "grow the L1 table");
    r = allocator_take_blocking(q->allocator, bytes >> q->cluster_bits, &offset, err);
    if (r < 0)
        return error_prefix(err, "grow the L1 table");
    LOCK_SCOPE(&q->allocator->work);
    _Atomic uint64_t *l1 = NULL;
    r = write_l1(q, offset, bytes, &l1);
    if (r < 0) {
        if (!image_failed(q->base.image))
            drop_clusters(q, offset, bytes);
        return error_sys(err, r, "grow the L1 table");
    }
    uint64_t old_offset = q->l1_offset;
    uint64_t old_bytes = (uint64_t)q->header.l1_size * 8;
    r = switch_header(q, size, offset, entries);
    if (r < 0) {
        free((void *)l1);
        return error_sys(err, r, "grow the L1 table");
    }
    free((void *)q->l1);
    q->l1 = l1;
    q->l1_entries = entries;
    q->l1_offset = offset;
    guard_remove(q, old_offset, old_bytes);
    guard_add(q, GUARD_L1, offset, bytes);
    drop_clusters(q, old_offset, old_bytes);
    return 0;
}

int qcow2_resize(struct layer *layer, uint64_t size, struct error *err)
{
    struct qcow2 *q = (struct qcow2 *)layer;
    struct error own = ERROR_INIT; /* the code words need one even where the caller does not */
    err = err ? err : &own;
    if (size % 512)
        return error_set(err, EINVAL, "the size must be a multiple of 512");
    if (q->header.version == 2 && q->header.nb_snapshots) {
        (void)error_set(err, EOPNOTSUPP, "an image of version 2 with internal snapshots cannot grow");
        return error_code(err, "unsupported-feature");
    }
    uint64_t needed = size > INT64_MAX ? UINT64_MAX : header_l1_needed(&q->header, size);
    if (needed > QCOW2_L1_MAX_BYTES / 8)
        return error_set(err, EFBIG, "%llu bytes are too many for clusters of %llu bytes", (unsigned long long)size,
                         (unsigned long long)q->cluster_size);
    int r = qcow2_commit_blocking(q); /* then the table in memory is the one on disk */
    if (r < 0)
        return error_sys(err, r, "write tables back");
    if (needed > q->header.l1_size) {
        r = move_l1(q, size, (uint32_t)needed, err);
    } else {
        LOCK_SCOPE(&q->allocator->work);
        r = switch_header(q, size, q->header.l1_offset, q->header.l1_size);
        if (r < 0)
            (void)error_sys(err, r, "write the qcow2 header");
    }
    if (r == 0)
        q->base.size = size;
    return r;
}
