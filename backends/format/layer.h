/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a format implements, and what the format-neutral core (image.c, queue.c) gives it. Only backends/format
 * includes this header.
 *
 * The core checks a request before a format sees it: within the layer's size, op allowed, aligned to the image's
 * alignment, FUA turned into a following flush, the drain gate passed, the epoch counted. So a format's submit()
 * only maps and moves bytes.
 */
#ifndef PLATTER_BACKENDS_FORMAT_LAYER_H
#define PLATTER_BACKENDS_FORMAT_LAYER_H

#include <pthread.h>

#include "backends/format/image.h"

struct layer;
struct layer_queue;

struct layer_open_options {
    bool read_only; /* frozen layers always */
    bool verify_only;
    bool alone; /* what lies below is left out on purpose */
    size_t cache_bytes;
    const struct layer *below; /* NULL = bottom */
};

struct layer_ops {
    const char *name;

    /* Required; control thread; may block. `file` stays the image's; the layer only uses it. */
    int (*open)(struct image *image, struct io_file *file, const struct layer_open_options *options,
                struct layer **ret_layer, struct error *err);
    /* Required; control thread, after all queues are gone; may block; frees in any case. */
    int (*close)(struct layer *layer, struct error *err);

    /* Required; loop's thread. `lq` keeps what the layer needs on that loop. */
    int (*queue_create)(struct layer *layer, struct image_queue *queue, struct layer_queue **ret_lq, struct error *err);
    void (*queue_destroy)(struct layer_queue *lq);

    /* Required; loop's thread; must not block or allocate. Ends with layer_request_done(request, result), at once
     * or later on the same thread. Frozen layers get IMAGE_READ and IMAGE_STATUS only. */
    void (*submit)(struct layer_queue *lq, struct image_request *request);

    /* Optional; loop's thread. There is space on its way back (freed, not yet to be had): what ended with -ENOSPC may
     * pass soon. */
    bool (*space_coming)(const struct layer *layer);

    /* Required for writable layers; control thread, image drained; may block. When it shrinks the image, what
     * lies beyond reads as zeros already. */
    int (*resize)(struct layer *layer, uint64_t size, struct error *err);

    /* For layers that a snapshot may freeze; control thread, image drained, a writable layer: everything is written back and
     * durable, and from then on nothing but reads comes. After an error the layer goes on as it was. */
    int (*freeze)(struct layer *layer, struct error *err);
    /* Optional; control thread, image drained, a layer without others below: `fd`, an empty file, becomes what this layer
     * is. -EOPNOTSUPP: the file system cannot share blocks. */
    int (*reflink)(struct layer *layer, int fd, struct error *err);
    /* The same thread afterwards, while reads come (NULL = nothing to do): end what only a writer needs, give back what it
     * had reserved. What fails costs space at most. */
    void (*retire)(struct layer *layer);
    /* For layers that may be put on top by a snapshot: does it hold nothing at all? */
    bool (*is_empty)(const struct layer *layer);
    /* Control thread, frozen layers; NULL = has no cache: use no more than so many bytes from now on. */
    void (*limit_cache)(struct layer *layer, size_t bytes);

    int (*create)(struct io_file *file, const struct image_create_options *options, struct error *err);
    int (*probe)(struct io_file *file, struct image_info *ret_info, struct error *err);
    /* May block. *ret_check comes zeroed. NULL: the format has nothing that could disagree. */
    int (*check)(struct io_file *file, const struct image_check_options *options, struct image_check *ret_check,
                 struct error *err);
};

/* Embedded first in each format's own layer. open() sets size, granularity and discard; the core sets the rest once
 * open() has returned (a format that needs them earlier may set them itself, to the same values). */
struct layer {
    const struct layer_ops *ops;
    struct image *image;
    struct io_file *file;
    struct layer *below;  /* NULL = bottom: unallocated reads as zeros */
    uint64_t size;        /* bytes */
    uint32_t granularity; /* bytes: cluster or subcluster size; 4096 for raw */
    unsigned index;       /* 0 = top */
    uint64_t serial;      /* never 0, never used again: tells layers apart while the chain changes */
    bool read_only;
    bool discard;
};

/* Embedded first in each format's own queue. The core fills it once queue_create() has returned. */
struct layer_queue {
    struct layer *layer;
    struct image_queue *queue;
    struct layer_queue *below; /* the next layer's queue on the same loop, or NULL */
};

/* End a request that a submit() got. */
void layer_request_done(struct image_request *request, int result);

/* Send `request` (a child that the format owns: op READ or STATUS, its done set) to the layer below `lq`; what lies
 * beyond that layer's size, or below the bottom, is zeros. It may shorten request->length: a submit() must move
 * request->length bytes, also where iov holds more. */
void layer_submit_below(struct layer_queue *lq, struct image_request *request);

/* Append `length` bytes of `state` to what an IMAGE_STATUS answers, merging equal neighbours. False when there is no
 * room for it. */
bool layer_status_add(struct image_status *status, uint64_t length, uint32_t state);

/* Helpers on iovecs. */
/* The part [skip, skip + length) of iov as up to `max` entries in `ret`; returns the number of entries and the
 * bytes covered (less than length when max did not suffice). */
unsigned iov_slice(const struct iovec *iov, unsigned iovcnt, uint64_t skip, uint64_t length, struct iovec *ret,
                   unsigned max, uint64_t *ret_covered);
void iov_fill_zero(const struct iovec *iov, unsigned iovcnt, uint64_t skip, uint64_t length);
void iov_from_buffer(const struct iovec *iov, unsigned iovcnt, uint64_t skip, const void *buffer, uint64_t length);
void iov_to_buffer(const struct iovec *iov, unsigned iovcnt, uint64_t skip, void *buffer, uint64_t length);

/* ---- the image's services ---------------------------------------------------------------------------------- */

/* A thread that is not a loop of this image (a format's keeper): wait until every request that was in flight on any
 * queue when this was called has completed. New ones go on meanwhile. With no queues it returns at once. */
void image_grace(struct image *image);

/* Any thread: run `task` on some queue's loop; false when the image has no queue (then the caller does it itself,
 * blocking). That queue may be destroyed before the task runs. */
bool image_post(struct image *image, struct io_task *task);

/* The first fsync or metadata write error is kept. Not for a flush that found no space for its metadata and keeps it:
 * that one just ends with -ENOSPC. Any other error of a flush fails the image by itself: from then on writes and flushes fail with it. Any thread. */
void image_fail(struct image *image, int error);
int image_failed(const struct image *image); /* 0 or -errno */

extern const struct layer_ops raw_layer_ops;
extern const struct layer_ops qcow2_layer_ops;

#endif
