// SPDX-License-Identifier: Apache-2.0
/*
 * Other layers below the top of an open image: after one of them was merged into the next, or changed on disk so that what
 * is cached of it must go. As for a snapshot (snapshot.c), the pause moves pointers only: the new layers are opened and every
 * queue has its parts of them before, the old ones are closed after. Control thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/format/core.h"
#include "common/cleanup.h"

struct rebase {
    struct image *image;
    size_t count;
    struct layer *layers[IMAGE_LAYERS_MAX]; /* top first: the new ones, after the exchange the old ones */
};

/* Closes what it has. After the exchange also the files. */
static void close_layers(struct rebase *rebase, bool close_files)
{
    for (size_t i = 0; i < rebase->count; i++) {
        struct layer *layer = rebase->layers[i];
        struct io_file *file = layer ? layer->file : NULL;
        if (layer)
            (void)layer->ops->close(layer, NULL); /* only read, or retired */
        if (close_files)
            (void)io_file_close(file);
    }
}

static int open_layers(struct rebase *rebase, const struct image_layer *specs, struct error *err)
{
    for (size_t i = rebase->count; i-- > 0;) {
        struct layer_open_options options = {
            .read_only = true,
            .cache_bytes = image_cache_share(rebase->image, rebase->count + 1, i + 1),
            .below = i + 1 < rebase->count ? rebase->layers[i + 1] : NULL,
        };
        int r = image_open_layer(rebase->image, &specs[i], &options, &rebase->layers[i], err);
        if (r < 0) {
            (void)error_prefix(err, "layer %zu (%s)", i + 1, specs[i].format);
            return r;
        }
        rebase->layers[i]->index = (unsigned)i + 1;
    }
    return 0;
}

/* Drained: the image's lower layers for those of `rebase`, in the image and in each queue. */
static void exchange(struct rebase *rebase)
{
    struct image *image = rebase->image;
    struct layer *old[IMAGE_LAYERS_MAX];
    size_t old_count = image->count - 1, count = rebase->count;
    LOCK_SCOPE(&image->lock);
    chain_wait_for_builders(image);
    memcpy(old, image->layers + 1, old_count * sizeof(void *));
    for (size_t i = 0; i < count; i++) {
        image->layers[i + 1] = rebase->layers[i];
        image->files[i + 1] = rebase->layers[i]->file;
    }
    image->layers[0]->below = image->layers[1];
    memcpy(rebase->layers, old, old_count * sizeof(void *));
    for (unsigned i = 0; i < image->queue_count; i++) {
        struct image_queue *queue = image->queues[i];
        struct layer_queue *leaving[IMAGE_LAYERS_MAX];
        memcpy(leaving, queue->lqs + 1, old_count * sizeof(void *));
        memcpy(queue->lqs + 1, queue->next, count * sizeof(void *));
        queue->top->below = queue->lqs[1];
        memset(queue->next, 0, count * sizeof(void *));
        memcpy(queue->next, leaving, old_count * sizeof(void *));
        queue->next_count = old_count;
    }
    image->count = count + 1;
    image->incoming_count = 0;
    rebase->count = old_count;
}

int image_rebase(struct image *image, const struct image_layer *layers, size_t count, struct error *err)
{
    if (image->count == 1)
        return error_set(err, EINVAL, "the image has no layer below its top");
    if (count == 0 || count >= IMAGE_LAYERS_MAX)
        return error_set(err, EINVAL, "1 to %u layers can lie below the top, not %zu", IMAGE_LAYERS_MAX - 1, count);
    CLEANUP_FREE struct rebase *rebase = calloc(1, sizeof(*rebase));
    if (!rebase)
        return error_sys(err, ENOMEM, "change the layers of an image");
    rebase->image = image;
    rebase->count = count;
    int r = open_layers(rebase, layers, err);
    if (r == 0) {
        r = chain_prepare(image, rebase->layers, count);
        if (r < 0)
            (void)error_sys(err, r, "make the queues of the new layers");
    }
    if (r == 0) {
        image_drain_begin(image);
        exchange(rebase);
        image_drain_end(image);
    }
    (void)chain_prepare(image, NULL, 0);
    close_layers(rebase, r == 0);
    return r;
}
