// SPDX-License-Identifier: Apache-2.0
/*
 * Snapshots of an open image: the top layer is frozen, an empty one put above it; or, of a raw image, its file is reflinked.
 *
 * All that can take long is done before requests are held: the new layer is opened, every queue gets its part of it on
 * its own loop (as `next`, which no request sees yet), and one flush writes most of what is dirty. Then the image is
 * drained; what is left is the write-back of tables that changed since, one flush, and moving pointers. What the old top
 * kept for writing (threads, reserved clusters) is given back afterwards, while requests are served again.
 *
 * Control thread.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "backends/format/core.h"
#include "common/cleanup.h"

/* ---- before the pause -------------------------------------------------------------------------------------------- */

static int check(const struct image *image, struct error *err)
{
    const struct layer *top = image->layers[0];
    if (image->read_only)
        return error_set(err, EINVAL, "the image is open for reading only");
    if (image_failed(image))
        return error_sys(err, image_failed(image), "the image failed before");
    if (image->count == IMAGE_LAYERS_MAX)
        return error_set(err, E2BIG, "an image has at most %u layers", IMAGE_LAYERS_MAX);
    if (!top->ops->freeze)
        return error_set(err, EINVAL, "a layer of format %s cannot be frozen", top->ops->name);
    return 0;
}

static int check_new(const struct image *image, const struct layer *layer, struct error *err)
{
    if (layer->size != image->size)
        return error_set(err, EINVAL, "the new layer has %llu bytes, the image %llu", (unsigned long long)layer->size,
                         (unsigned long long)image->size);
    if (!layer->ops->is_empty || !layer->ops->is_empty(layer))
        return error_set(err, EINVAL, "the new layer is not empty");
    return 0;
}

static void flush_ahead_done(struct image_request *request, int result)
{
    request->owner = NULL;
    request->result = result;
}

/* So that little is left to be written while requests wait. Without the means for it the pause is longer, no more. */
static int flush_ahead(struct image *image)
{
    struct io_loop *loop = NULL;
    struct image_queue *queue = NULL;
    struct image_request flush = {.op = IMAGE_FLUSH, .done = flush_ahead_done};
    int r = io_loop_create(&(struct io_loop_options){.depth = 8}, &loop, NULL);
    if (r < 0)
        return 0;
    if (image_queue_create(image, loop, &queue, NULL) == 0) {
        flush.owner = loop;
        image_submit(queue, &flush);
        while (flush.owner && (r >= 0 || r == -EINTR))
            r = io_loop_turn(loop, -1);
        assert(!flush.owner); /* a loop of our own that cannot turn: nothing is known of its requests any more */
        queue = image_queue_destroy(queue);
    }
    loop = io_loop_destroy(loop);
    return flush.result;
}

static int open_new(struct image *image, const struct image_layer *spec, struct layer **ret_layer, struct error *err)
{
    struct layer *layer = NULL;
    struct layer_open_options options = {
        .cache_bytes = image_cache_share(image, image->count + 1, 0),
        .below = image->layers[0],
    };
    int r = image_open_layer(image, spec, &options, &layer, err);
    if (r == 0)
        r = check_new(image, layer, err);
    if (r < 0) {
        if (layer)
            (void)layer->ops->close(layer, NULL);
        (void)error_prefix(err, "the new layer (%s)", spec->format);
        return r;
    }
    *ret_layer = layer;
    return 0;
}

/* ---- the pause --------------------------------------------------------------------------------------------------- */

/* Drained: `layer` is the top from now on. */
static void put_on_top(struct image *image, struct layer *layer)
{
    LOCK_SCOPE(&image->lock);
    chain_wait_for_builders(image);
    image->layers[0]->read_only = true;
    for (size_t i = 0; i < image->count; i++)
        image->layers[i]->index++;
    memmove(image->layers + 1, image->layers, image->count * sizeof(struct layer *));
    memmove(image->files + 1, image->files, image->count * sizeof(struct io_file *));
    image->layers[0] = layer;
    image->files[0] = layer->file;
    for (unsigned i = 0; i < image->queue_count; i++) {
        struct image_queue *queue = image->queues[i];
        memmove(queue->lqs + 1, queue->lqs, image->count * sizeof(struct layer_queue *));
        queue->lqs[0] = queue->top = queue->next[0];
        queue->next[0] = NULL;
        queue->next_count = 0;
    }
    image->count++;
    image->incoming_count = 0;
    image_update_geometry(image);
}

static uint64_t now_ns(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static int freeze_top(struct image *image, struct layer *layer, struct error *err)
{
    struct layer *old = image->layers[0];
    uint64_t start = now_ns();
    image_drain_begin(image);
    int r = image_failed(image);
    if (r < 0)
        (void)error_sys(err, r, "the image failed before");
    else
        r = old->ops->freeze(old, err);
    if (r == 0)
        put_on_top(image, layer);
    image_drain_end(image);
    if (r == 0)
        image->snapshot_pause = now_ns() - start;
    return r;
}

/* ---- afterwards -------------------------------------------------------------------------------------------------- */

static void limit_caches(struct image *image)
{
    size_t share = image_cache_share(image, image->count, 1);
    for (size_t i = 1; i < image->count; i++) {
        if (image->layers[i]->ops->limit_cache)
            image->layers[i]->ops->limit_cache(image->layers[i], share);
    }
}

int image_snapshot(struct image *image, const struct image_layer *spec, struct error *err)
{
    struct layer *layer, *old = image->layers[0];
    int r = check(image, err);
    if (r == 0)
        r = open_new(image, spec, &layer, err);
    if (r < 0)
        return r;
    r = image->drains ? 0 : flush_ahead(image); /* the caller's drain would hold the flush back for ever */
    if (r < 0)
        (void)error_sys(err, r, "flush before the snapshot");
    if (r == 0) {
        r = chain_prepare(image, &layer, 1);
        if (r < 0)
            (void)error_sys(err, r, "make the queues of the new layer");
    }
    if (r == 0)
        r = freeze_top(image, layer, err);
    if (r < 0) {
        (void)chain_prepare(image, NULL, 0);
        (void)layer->ops->close(layer, NULL);
        return r;
    }
    if (old->ops->retire)
        old->ops->retire(old);
    limit_caches(image);
    return 0;
}

/* ---- by reflink -------------------------------------------------------------------------------------------------- */

static int check_reflink(const struct image *image, struct error *err)
{
    const struct layer *top = image->layers[0];
    if (image->read_only)
        return error_set(err, EINVAL, "the image is open for reading only");
    if (image_failed(image))
        return error_sys(err, image_failed(image), "the image failed before");
    if (image->count != 1 || !top->ops->reflink)
        return error_set(err, EINVAL, "only a raw image alone can be reflinked");
    return 0;
}

int image_reflink(struct image *image, int fd, struct error *err)
{
    struct layer *top = image->layers[0];
    int r = check_reflink(image, err);
    if (r < 0)
        return r;
    r = flush_ahead(image);
    if (r < 0)
        return error_sys(err, r, "flush before the snapshot");
    uint64_t start = now_ns();
    image_drain_begin(image);
    r = image_failed(image);
    if (r < 0)
        (void)error_sys(err, r, "the image failed before");
    else
        r = top->ops->reflink(top, fd, err);
    image_drain_end(image);
    uint64_t pause = now_ns() - start;
    if (r == 0 && fsync(fd) < 0)
        r = error_sys(err, errno, "flush the snapshot");
    if (r == 0)
        image->snapshot_pause = pause;
    return r;
}

uint64_t image_snapshot_pause(const struct image *image)
{
    return image->snapshot_pause;
}
