// SPDX-License-Identifier: Apache-2.0
/*
 * Opening and closing a qcow2 layer. Everything that can be checked against the file's length is checked here, once,
 * so that the data path meets L2 entries as the only unverified numbers.
 */
#include "backends/format/qcow2/qcow2.h"

#include <errno.h>
#include <stdlib.h>

#include "backends/format/qcow2/allocator.h"
#include "backends/format/qcow2/bitmaps.h"
#include "backends/format/qcow2/control.h"
#include "backends/format/qcow2/guard.h"
#include "backends/format/qcow2/keeper.h"
#include "backends/format/qcow2/refcount.h"
#include "backends/format/qcow2/snapshot.h"
#include "common/checked.h"
#include "common/cleanup.h"

#define L1_RESERVED (~(QCOW2_OFFSET_MASK | QCOW2_COPIED))

/* ---- checks -------------------------------------------------------------------------------------------------- */

static int check_backing(const struct header *h, const struct layer_open_options *options, struct error *err)
{
    const struct layer *below = options->below;
    if (h->backing[0] && !below && !options->alone) {
        (void)error_set(err, EINVAL, "the image names a backing file, but no layer below was given");
        return error_code(err, "backing-not-given");
    }
    if (!h->backing[0] && below)
        return error_set(err, EINVAL, "the image names no backing file, but a layer below was given");
    return 0;
}

void qcow2_derive(struct qcow2 *q)
{
    const struct header *h = &q->header;
    bool extended = h->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2;
    q->cluster_bits = h->cluster_bits;
    q->cluster_size = UINT64_C(1) << h->cluster_bits;
    q->entry_size = extended ? 16 : 8;
    q->l2_bits = h->cluster_bits - (extended ? 4 : 3);
    q->subcluster_size = extended ? q->cluster_size / 32 : q->cluster_size;
    q->base.size = h->size;
    q->base.granularity = (uint32_t)q->subcluster_size;
    q->base.discard = true;
}

static int read_header(struct qcow2 *q, const struct layer_open_options *options, struct error *err)
{
    int r = header_read(q->base.file, &q->header, &q->file_length_at_open, err);
    if (r < 0)
        return r;
    r = header_check_features(&q->header, err);
    if (r < 0)
        return r;
    r = header_validate(&q->header, q->file_length_at_open, err);
    if (r < 0)
        return r;
    if ((q->header.incompatible & QCOW2_INCOMPATIBLE_CORRUPT) && !options->read_only) {
        (void)error_set(err, EUCLEAN, "the image is marked corrupt: it can be opened for reading only");
        (void)error_hint(err, "platter volume check VOLUME --repair");
        return error_code(err, "corrupt-image");
    }
    r = check_backing(&q->header, options, err);
    if (r < 0)
        return r;
    qcow2_derive(q);
    /* Blocks of direct I/O larger than a subcluster: neighbours would overwrite each other. */
    if (q->base.file->direct && q->base.file->offset_align > q->subcluster_size) {
        r = io_file_use_page_cache(q->base.file);
        if (r < 0)
            return error_sys(err, r, "leave direct I/O");
    }
    return snapshots_walk(q, NULL, NULL, &q->header.snapshots_length, err);
}

static int read_l1(struct qcow2 *q, struct error *err)
{
    uint64_t bytes = (uint64_t)q->header.l1_size * 8;
    q->l1_entries = q->header.l1_size;
    q->l1_offset = q->header.l1_offset;
    q->l1 = aligned_alloc(4096, MAX(align_up(bytes, 4096), 4096));
    if (!q->l1)
        return error_sys(err, ENOMEM, "L1 table");
    int r = bytes ? io_file_read(q->base.file, (void *)q->l1, bytes, q->l1_offset) : 0;
    if (r < 0)
        return error_sys(err, r, "read the L1 table");
    for (uint32_t i = 0; i < q->l1_entries; i++) {
        uint64_t entry = be64toh(atomic_load_explicit(&q->l1[i], memory_order_relaxed));
        uint64_t offset = entry & QCOW2_OFFSET_MASK;
        bool placed = offset == 0 || (is_aligned(offset, q->cluster_size) &&
                                      range_within(offset, q->cluster_size, q->file_length_at_open) &&
                                      !guard_is_fixed(q, offset, q->cluster_size));
        if (!placed || (entry & L1_RESERVED) || (entry && !offset)) {
            (void)error_set(err, EUCLEAN, "L1 entry %u (0x%llx) names no place where a table can be", i,
                            (unsigned long long)entry);
            return error_code(err, "corrupt-image");
        }
    }
    return 0;
}

/* ---- open ---------------------------------------------------------------------------------------------------- */

/* Bits whose meaning we do not keep up while writing must be off before the first write. */
static int clear_autoclear(struct qcow2 *q, struct error *err)
{
    uint64_t kept = q->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS;
    int r = kept ? bitmaps_mark_in_use(q) : 0;
    if (r == -EUCLEAN)
        kept = 0;
    else if (r < 0)
        return error_sys(err, r, "mark the bitmaps as in use");
    if (q->header.autoclear == kept)
        return 0;
    q->header.autoclear = kept;
    r = header_write(q->base.file, &q->header);
    if (r == 0)
        r = io_file_flush(q->base.file);
    return r < 0 ? error_sys(err, r, "write the qcow2 header") : 0;
}

static int open_writable(struct qcow2 *q, struct error *err)
{
    int r = refcounts_open(q, &q->refcounts, err);
    if (r == 0 && (q->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY))
        r = qcow2_rebuild(q, err);
    if (r == 0)
        r = guard_create(q, err);
    if (r == 0)
        r = clear_autoclear(q, err);
    if (r == 0)
        r = keeper_create("qcow2-keeper", &q->keeper, err);
    return r == 0 ? allocator_create(q, &q->allocator, err) : r;
}

/* Whatever exists of `q`; the first error of `r` and its own. */
static int teardown(struct qcow2 *q, bool data_open, int r)
{
    if (data_open)
        qcow2_data_close(q);
    int ended = allocator_destroy(q->allocator);
    q->keeper = keeper_destroy(q->keeper);
    q->refcounts = refcounts_destroy(q->refcounts);
    q->guard = guard_destroy(q->guard);
    free((void *)q->l1);
    header_release(&q->header);
    (void)pthread_mutex_destroy(&q->lock);
    free(q);
    return r < 0 ? r : ended;
}

static int qcow2_open(struct image *image, struct io_file *file, const struct layer_open_options *options,
                      struct layer **ret_layer, struct error *err)
{
    struct error own = ERROR_INIT; /* the code words need one even where the caller does not */
    struct qcow2 *q = calloc(1, sizeof(*q));
    err = err ? err : &own;
    if (!q)
        return error_sys(err, ENOMEM, "open a qcow2 image");
    (void)pthread_mutex_init(&q->lock, NULL);
    q->base.ops = &qcow2_layer_ops;
    q->base.image = image;
    q->base.file = file;
    q->base.below = (struct layer *)options->below; /* the core's own, which it sets again */
    q->base.read_only = options->read_only;
    int r = read_header(q, options, err);
    if (r == 0)
        r = read_l1(q, err);
    if (r == 0 && options->verify_only) {
        r = refcounts_open(q, &q->refcounts, err);
        q->refcounts = refcounts_destroy(q->refcounts);
    }
    if (r == 0 && !options->read_only)
        r = open_writable(q, err);
    if (r == 0)
        r = qcow2_data_open(q, options->cache_bytes, err);
    if (r < 0)
        return teardown(q, false, r);
    *ret_layer = &q->base;
    return 0;
}

/* ---- close --------------------------------------------------------------------------------------------------- */

static int qcow2_close(struct layer *layer, struct error *err)
{
    struct qcow2 *q = (struct qcow2 *)layer;
    struct io_file *file = layer->file;
    bool writable = q->allocator;
    int r = writable ? qcow2_commit_blocking(q) : 0;
    r = teardown(q, true, r);
    int flushed = writable ? io_file_flush(file) : 0;
    r = r < 0 ? r : flushed;
    return r < 0 ? error_sys(err, r, "write a qcow2 image back") : 0;
}

const struct layer_ops qcow2_layer_ops = {
    .name = "qcow2",
    .open = qcow2_open,
    .close = qcow2_close,
    .queue_create = qcow2_queue_create,
    .queue_destroy = qcow2_queue_destroy,
    .submit = qcow2_submit,
    .resize = qcow2_resize,
    .freeze = qcow2_freeze,
    .retire = qcow2_retire,
    .is_empty = qcow2_is_empty,
    .limit_cache = qcow2_limit_cache,
    .create = qcow2_create,
    .probe = qcow2_probe,
    .check = qcow2_check,
};
