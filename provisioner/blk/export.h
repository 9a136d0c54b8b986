/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An export: how platter-blk offers its open image. One implementation for each transport (vhost_user, nbd, fuse),
 * each filling a `const struct export_ops`.
 *
 * Threads: the functions of export_ops run on platter-blk's control thread and may block. An export starts its own
 * I/O threads, each with its own io_loop and image_queue, and ends them in stop().
 */
#ifndef PLATTER_PROVISIONER_BLK_EXPORT_H
#define PLATTER_PROVISIONER_BLK_EXPORT_H

#include <stdbool.h>
#include <stdint.h>

#include "backends/format/image.h"
#include "common/error.h"

struct export;

struct export_options {
    const char *name;    /* copied */
    struct image *image; /* outlives the export */
    int fd;              /* listening socket, or the mounted /dev/fuse; taken over on success */
    unsigned queues;     /* I/O threads (FUSE, NBD) or virtqueues (vhost-user); 0 = the transport's default */
    bool read_only;
    const char *serial; /* at most 20 bytes, shown to the guest; copied; NULL = "" */
    enum io_engine engine;
    bool resumed; /* FUSE: an earlier process answered INIT on fd and is dead: take its unanswered requests over */
};

struct export_stats {
    uint64_t reads, writes, flushes, discards; /* completed requests */
    uint64_t read_bytes, write_bytes;
    uint64_t errors;
    unsigned clients; /* connected now */
};

struct export_ops {
    const char *kind; /* "vhost-user-blk", "nbd", "fuse" */
    /* Required. Returns when the export can serve (for FUSE: after INIT was answered). */
    int (*start)(const struct export_options *options, struct export **ret_export, struct error *err);
    /* Required. Lets requests in flight finish (a client that does not read its answers is dropped after 5 s),
     * drops the clients, ends the threads, frees. */
    void (*stop)(struct export *export);
    /* Required. The image has grown: tell connected clients where the transport can. */
    void (*resized)(struct export *export, uint64_t size);
    /* Required. Counters summed over the threads, without stopping them. */
    void (*stats)(struct export *export, struct export_stats *ret_stats);
};

/* Embedded first in each implementation. */
struct export
{
    const struct export_ops *ops;
};

extern const struct export_ops vhost_user_export_ops;
extern const struct export_ops nbd_export_ops;
extern const struct export_ops fuse_export_ops;

#endif
