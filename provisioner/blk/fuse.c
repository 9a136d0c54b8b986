// SPDX-License-Identifier: Apache-2.0
// The FUSE export: start, stop, resize. The mount belongs to whoever made it; we answer what comes through the
// descriptor until it says that nothing will.
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "provisioner/blk/export.h"
#include "provisioner/blk/fuse_export.h"

static void destroy(struct fuse_export *export)
{
    if (!export)
        return;
    for (unsigned i = 0; i < export->thread_count; i++)
        fuse_thread_stop(&export->threads[i]);
    for (unsigned i = 0; i < export->thread_count; i++)
        fuse_thread_join(&export->threads[i]);
    cleanup_close(&export->fd);
    free(export);
}

static int start_threads(struct fuse_export *export, const struct export_options *options, struct error *err)
{
    unsigned cpus = export_cpus();
    unsigned threads = MIN(options->queues ? options->queues : cpus, FUSE_THREADS_MAX);
    for (unsigned i = 0; i < threads; i++) {
        int r = fuse_thread_start(export, i, export_cpu(i % cpus), options->engine, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int begin(int fd, bool resumed, struct error *err)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return error_sys(err, errno, "fuse: make the descriptor non-blocking");
    return resumed ? fuse_resend(fd, err) : fuse_init(fd, err);
}

static int fuse_start(const struct export_options *options, struct export **ret_export, struct error *err)
{
    struct fuse_export *export = calloc(1, sizeof(*export));
    if (!export)
        return error_sys(err, ENOMEM, "fuse: start an export");
    struct image_geometry geometry;
    image_geometry(options->image, &geometry);
    export->base.ops = &fuse_export_ops;
    export->image = options->image;
    export->fd = -1;
    export->read_only = options->read_only || geometry.read_only;
    atomic_store(&export->size, geometry.size);
    int r = start_threads(export, options, err);
    if (r == 0)
        r = begin(options->fd, options->resumed, err);
    if (r < 0) {
        destroy(export);
        return r;
    }
    export->fd = options->fd;
    atomic_store(&export->connected, export->thread_count);
    for (unsigned i = 0; i < export->thread_count; i++)
        fuse_thread_listen(&export->threads[i]);
    *ret_export = &export->base;
    return 0;
}

static void fuse_stop(struct export *base)
{
    destroy((struct fuse_export *)base);
}

static void fuse_resized(struct export *base, uint64_t size)
{
    struct fuse_export *export = (struct fuse_export *)base;
    atomic_store(&export->size, size);
    fuse_invalidate(export->fd);
}

static void fuse_stats(struct export *base, struct export_stats *ret_stats)
{
    const struct fuse_export *export = (struct fuse_export *)base;
    *ret_stats = (struct export_stats){.clients = atomic_load(&export->connected) > 0};
    for (unsigned i = 0; i < export->thread_count; i++)
        export_counters_add(&export->threads[i].base, ret_stats);
}

const struct export_ops fuse_export_ops = {
    .kind = "fuse",
    .start = fuse_start,
    .stop = fuse_stop,
    .resized = fuse_resized,
    .stats = fuse_stats,
};
