// SPDX-License-Identifier: Apache-2.0
/*
 * Opening, describing, resizing and closing an image: the control thread's side of the core. Whether a layer may stand
 * over another (backing names, sizes) is its format's business, which is told what lies below.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/format/core.h"
#include "common/checked.h"
#include "common/cleanup.h"

#define CACHE_BYTES_DEFAULT ((size_t)32 << 20) /* the L2 tables of 256 GiB in 64 KiB clusters */

/* ---- opening ---- */

void image_update_geometry(struct image *image)
{
    const struct io_file *file = image->files[0];
    image->size = image->layers[0]->size;
    image->alignment = file->direct ? file->offset_align : 1;
}

size_t image_cache_share(const struct image *image, size_t count, size_t index)
{
    size_t total = image->cache_bytes;
    if (count == 1)
        return total;
    return index == 0 ? total / 2 : total / 2 / (count - 1);
}

static _Atomic uint64_t next_serial = 1;

int image_open_layer(struct image *image, const struct image_layer *spec, const struct layer_open_options *options,
                     struct layer **ret_layer, struct error *err)
{
    const struct layer_ops *ops = format_find(spec->format);
    if (!ops) {
        (void)error_set(err, EINVAL, "unknown image format '%s'", spec->format);
        (void)error_code(err, "unknown-format");
        return -EINVAL;
    }
    if (!options->read_only && !spec->file->writable)
        return error_set(err, EROFS, "the top layer's file is not open for writing");
    struct layer *layer;
    int r = ops->open(image, spec->file, options, &layer, err);
    if (r < 0)
        return r;
    layer->ops = ops;
    layer->image = image;
    layer->file = spec->file;
    layer->below = (struct layer *)options->below;
    layer->read_only = options->read_only;
    layer->serial = atomic_fetch_add_explicit(&next_serial, 1, memory_order_relaxed);
    *ret_layer = layer;
    return 0;
}

static int open_layer(struct image *image, const struct image_layer *spec, size_t index,
                      const struct image_options *image_options, struct error *err)
{
    bool bottom = index + 1 == image->count;
    struct layer_open_options options = {
        .read_only = image->read_only || index > 0,
        .verify_only = image_options->verify_only,
        .alone = image_options->alone,
        .cache_bytes = image_cache_share(image, image->count, index),
        .below = bottom ? NULL : image->layers[index + 1],
    };
    struct layer *layer;
    int r = image_open_layer(image, spec, &options, &layer, err);
    if (r < 0) {
        if (image->count > 1)
            (void)error_prefix(err, "layer %zu (%s)", index, spec->format);
        return r;
    }
    layer->index = (unsigned)index;
    image->layers[index] = layer;
    return 0;
}

/* Frees `image` with whatever layers it has; the files only when `close_files`. */
static int image_free(struct image *image, bool close_files, struct error *err)
{
    int result = 0;
    for (size_t i = 0; i < image->count; i++) {
        if (!image->layers[i])
            continue;
        int r = image->layers[i]->ops->close(image->layers[i], result < 0 ? NULL : err);
        result = result < 0 ? result : r;
    }
    for (size_t i = 0; close_files && i < image->count; i++)
        image->files[i] = io_file_close(image->files[i]);
    (void)pthread_cond_destroy(&image->changed);
    (void)pthread_mutex_destroy(&image->grace_lock);
    (void)pthread_mutex_destroy(&image->lock);
    free(image->layers);
    free(image->files);
    free(image);
    return result;
}

static struct image *image_alloc(size_t count)
{
    struct image *image = calloc(1, sizeof(*image));
    if (!image)
        return NULL;
    image->count = count;
    (void)pthread_mutex_init(&image->lock, NULL);
    (void)pthread_mutex_init(&image->grace_lock, NULL);
    (void)pthread_cond_init(&image->changed, NULL);
    gate_init(image);
    flush_init(image);
    image->layers = calloc(IMAGE_LAYERS_MAX, sizeof(struct layer *));
    image->files = calloc(IMAGE_LAYERS_MAX, sizeof(struct io_file *));
    if (image->layers && image->files)
        return image;
    image->count = 0;
    (void)image_free(image, false, NULL);
    return NULL;
}

int image_open(const struct image_layer *layers, size_t count, const struct image_options *options,
               struct image **ret_image, struct error *err)
{
    if (count == 0 || count > IMAGE_LAYERS_MAX)
        return error_set(err, EINVAL, "an image has 1 to %u layers, not %zu", IMAGE_LAYERS_MAX, count);
    if (options->alone && (count > 1 || !options->read_only))
        return error_set(err, EINVAL, "only one layer can be opened alone, for reading");
    struct image *image = image_alloc(count);
    if (!image)
        return error_sys(err, ENOMEM, "open an image");
    image->read_only = options->read_only || options->verify_only;
    image->cache_bytes = options->cache_bytes ? options->cache_bytes : CACHE_BYTES_DEFAULT;
    atomic_store(&image->wait_for_space, options->wait_for_space);
    for (size_t i = 0; i < count; i++)
        image->files[i] = layers[i].file;
    for (size_t i = count; i-- > 0;) {
        int r = open_layer(image, &layers[i], i, options, err);
        if (r < 0) {
            (void)image_free(image, false, NULL);
            return r;
        }
    }
    image_update_geometry(image);
    *ret_image = image;
    return 0;
}

int image_close(struct image *image, struct error *err)
{
    return image ? image_free(image, true, err) : 0;
}

/* ---- describing ---- */

void image_geometry(const struct image *image, struct image_geometry *ret_geometry)
{
    LOCK_SCOPE(&((struct image *)image)->lock);
    const struct layer *top = image->layers[0];
    *ret_geometry = (struct image_geometry){
        .size = image->size,
        .alignment = image->alignment,
        .preferred = top->granularity,
        .read_only = image->read_only,
        .discard = top->discard,
    };
}

/* ---- errors ---- */

void image_fail(struct image *image, int error)
{
    int none = 0;
    /* Nobody shall think that it passes when there is space. */
    if (error == -ENOSPC || error == ENOSPC || error == -EDQUOT || error == EDQUOT)
        error = -EIO;
    (void)atomic_compare_exchange_strong(&image->failed, &none, error < 0 ? error : -error);
}

int image_failed(const struct image *image)
{
    return atomic_load_explicit(&image->failed, memory_order_relaxed);
}

/* ---- resizing ---- */

static int check_resize(const struct image *image, uint64_t size, struct error *err)
{
    if (image->read_only)
        return error_set(err, EROFS, "the image is open for reading only");
    if (image_failed(image))
        return error_sys(err, image_failed(image), "the image failed before");
    if (size < image->size) {
        (void)error_set(err, EINVAL, "an image of %llu bytes cannot shrink to %llu", (unsigned long long)image->size,
                        (unsigned long long)size);
        (void)error_code(err, "shrink-refused");
        return -EINVAL;
    }
    if (size > INT64_MAX)
        return error_set(err, EFBIG, "an image cannot have %llu bytes", (unsigned long long)size);
    const struct layer *below = image->layers[0]->below;
    if (size > image->size && below && below->size > image->size) {
        /* New space would show what the layer below holds there. */
        (void)error_set(err, EOPNOTSUPP, "the layer below is larger than the image");
        (void)error_code(err, "backing-larger");
        return -EOPNOTSUPP;
    }
    return 0;
}

int image_resize(struct image *image, uint64_t size, struct error *err)
{
    struct layer *top = image->layers[0];
    int r = check_resize(image, size, err);
    if (r < 0 || size == image->size)
        return r;
    image_drain_begin(image);
    r = top->ops->resize(top, size, err);
    if (r == 0) {
        LOCK_SCOPE(&image->lock);
        top->size = size;
        image_update_geometry(image);
    }
    image_drain_end(image);
    return r;
}

static int check_shrink(const struct image *image, uint64_t size, struct error *err)
{
    if (image->read_only)
        return error_set(err, EROFS, "the image is open for reading only");
    if (image_failed(image))
        return error_sys(err, image_failed(image), "the image failed before");
    if (size == 0 || size % 512 || size > image->size)
        return error_set(err, EINVAL, "an image of %llu bytes cannot be cut at %llu", (unsigned long long)image->size,
                         (unsigned long long)size);
    if (image->count > 1) {
        (void)error_set(err, EOPNOTSUPP, "the image has layers below it");
        return error_code(err, "has-layers");
    }
    return 0;
}

int image_shrink(struct image *image, uint64_t size, struct error *err)
{
    struct layer *top = image->layers[0];
    int r = check_shrink(image, size, err);
    if (r < 0 || size == image->size)
        return r;
    r = top->ops->resize(top, size, err);
    if (r == 0) {
        top->size = size;
        image_update_geometry(image);
    }
    return r;
}

/* ---- creating and probing ---- */

static const struct layer_ops *format_named(const char *format, struct error *err)
{
    const struct layer_ops *ops = format_find(format);
    if (!ops) {
        (void)error_set(err, EINVAL, "unknown image format '%s'", format);
        (void)error_code(err, "unknown-format");
    }
    return ops;
}

int image_create(struct io_file *file, const char *format, const struct image_create_options *options,
                 struct error *err)
{
    const struct layer_ops *ops = format_named(format, err);
    if (!ops)
        return -EINVAL;
    if (options->size % 512 || options->size > INT64_MAX)
        return error_set(err, EINVAL, "an image's size must be a multiple of 512 bytes");
    return ops->create(file, options, err);
}

int image_probe(struct io_file *file, const char *format, struct image_info *ret_info, struct error *err)
{
    const struct layer_ops *ops = format_named(format, err);
    struct image_info info = {0};
    if (!ops)
        return -EINVAL;
    int r = ops->probe(file, &info, err);
    if (r == 0)
        *ret_info = info;
    return r;
}

int image_check(struct io_file *file, const char *format, const struct image_check_options *options,
                struct image_check *ret_check, struct error *err)
{
    const struct layer_ops *ops = format_named(format, err);
    struct image_check check = {0};
    if (!ops)
        return -EINVAL;
    if (options->repair && !file->writable)
        return error_set(err, EROFS, "an image opened for reading cannot be repaired");
    int r = ops->check ? ops->check(file, options, &check, err) : 0;
    if (r == 0)
        *ret_check = check;
    return r;
}
