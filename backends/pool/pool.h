/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pool: where image files live. One implementation for each kind ("dir"), each filling a `const struct pool_ops`.
 *
 * A pool holds, under names that derive from opaque ids only: image files ("lay-0123456789abcdef.img"), one sidecar
 * for each volume ("vol-0123456789abcdef.json", all that is needed to rebuild its record), and a marker file with the
 * pool's id, so that a directory whose disk is not mounted, or another disk in its place, is noticed (-ESTALE, code
 * "pool-missing"). Every name is resolved beneath the pool, without following links or leaving its file system.
 *
 * Threads: an open pool may be used by any number of threads. Calls block as long as the file system does.
 */
#ifndef PLATTER_BACKENDS_POOL_POOL_H
#define PLATTER_BACKENDS_POOL_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#define POOL_FILE_NAME_MAX 40

struct pool;

struct pool_usage {
    uint64_t capacity;  /* bytes of the whole file system */
    uint64_t available; /* bytes that can still be written */
    uint64_t used;      /* bytes that our files take */
};

enum pool_entry { POOL_ENTRY_IMAGE, POOL_ENTRY_SIDECAR, POOL_ENTRY_TEMPORARY, POOL_ENTRY_FOREIGN };

/* One file of the pool: `id` is the layer's or volume's, "" for foreign ones. Nonzero ends the walk. */
typedef int (*pool_entry_fn)(void *arg, enum pool_entry kind, const char *name, const char *id, uint64_t used);

struct pool_ops {
    const char *kind;
    /* Check that `path` can be a pool and write the marker. Idempotent for the same id. -EINVAL: not an absolute
     * path, not a directory, writable by others than its owner; -EPERM: owned by somebody else; -EEXIST: another
     * pool's marker is there. */
    int (*create)(const char *path, const char *id, struct error *err);
    int (*open)(const char *path, const char *id, struct pool **ret_pool, struct error *err);
    /* Frees; NULL is allowed. */
    struct pool *(*close)(struct pool *pool);
    /* Remove the marker and nothing else. A missing one is fine. */
    int (*remove)(struct pool *pool, struct error *err);
    int (*usage)(struct pool *pool, struct pool_usage *ret_usage, struct error *err);
    /* A new, empty image file (0600), open for reading and writing; its name is durable with the next
     * sidecar_write (one flush of the directory serves both). -EEXIST. */
    int (*image_create)(struct pool *pool, const char *layer_id, int *ret_fd, struct error *err);
    int (*image_open)(struct pool *pool, const char *layer_id, bool read_only, int *ret_fd, struct error *err);
    /* Idempotent; durable. */
    int (*image_delete)(struct pool *pool, const char *layer_id, struct error *err);
    /* Let image `from` have the name of `to`, whose own file goes, in one step; durable. -ENOENT: there is no `from`. */
    int (*image_rename)(struct pool *pool, const char *from, const char *to, struct error *err);
    /* Can files of this pool share blocks (FICLONE)? Tried with two small files without a name, once for each directory: the
     * answer is kept as long as the process lives. */
    int (*reflinks)(struct pool *pool, bool *ret_possible, struct error *err);
    /* Bytes on the disk; those that it shares with other files count. */
    int (*image_used)(struct pool *pool, const char *layer_id, uint64_t *ret_bytes, struct error *err);
    /* Replace the sidecar: readers see the old or the new text, after a power cut too. */
    int (*sidecar_write)(struct pool *pool, const char *volume_id, const char *text, struct error *err);
    int (*sidecar_delete)(struct pool *pool, const char *volume_id, struct error *err); /* idempotent */
    int (*walk)(struct pool *pool, pool_entry_fn fn, void *arg, struct error *err);
};

/* Embedded first in each implementation. */
struct pool {
    const struct pool_ops *ops;
};

extern const struct pool_ops pool_dir_ops;

/* NULL for a kind that is not known. */
const struct pool_ops *pool_kind(const char *kind);

/* True when `id` is PREFIX and 16 lower-case hex digits: the only ids that become file names. */
bool pool_id_valid(const char *id, const char *prefix);

#endif
