/* SPDX-License-Identifier: Apache-2.0 */
/*
 * platterd's side of platter-blk: start a block server or a worker, find one again, and speak to it in typed calls
 * (the protocol of docs/architecture.md). Everything that looks inside an image happens behind these calls.
 *
 * A server outlives its platterd: it has a session of its own and goes on serving when the connection drops. A client
 * is used by one thread at a time; every call blocks, at most for its deadline. When a call ends with -EPIPE,
 * -ETIMEDOUT or -EBADMSG the connection is of no more use: blk_disconnect, then blk_connect again, or blk_kill.
 */
#ifndef PLATTER_PROVISIONER_NODE_BLK_CLIENT_H
#define PLATTER_PROVISIONER_NODE_BLK_CLIENT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"

#define BLK_LAYERS_MAX 248 /* a chain's descriptors travel with one message */
#define BLK_EXPORTS_MAX 8
#define BLK_EXPORT_NAME_MAX 64

/* One image file of a chain: its format by record ("raw", "qcow2") and its descriptor, which stays the caller's. The
 * open file description is shared: platter-blk sets O_DIRECT on it where the file system can. */
struct blk_layer {
    const char *format;
    int fd;
};

/* ---- servers ---------------------------------------------------------------------------------------------- */

struct blk_client; /* a connection to one running server */

/* Bind `socket_path` (mode 0600; an old socket file there is replaced), start platter-blk on it, connect and greet.
 * `binary` NULL = "platter-blk" beside the running executable. The server's standard error is ours. */
int blk_spawn(const char *binary, const char *socket_path, struct blk_client **ret_client, struct error *err);

/* Find the server that listens at `socket_path`. -ENOENT or -ECONNREFUSED: none is there any more. */
int blk_connect(const char *socket_path, struct blk_client **ret_client, struct error *err);

/* Close the connection; the server goes on. Reaps it if it was our child and has ended. NULL is allowed.
 * Returns NULL. */
struct blk_client *blk_disconnect(struct blk_client *client);

pid_t blk_pid(const struct blk_client *client);
/* Readable once the server has ended. The client's; never closed by the caller. */
int blk_pidfd(const struct blk_client *client);

enum blk_state { BLK_EMPTY, BLK_OPEN, BLK_FAILED };

struct blk_export_state {
    char name[BLK_EXPORT_NAME_MAX];
    char kind[16];
};

struct blk_hello {
    int protocol;
    char version[32];
    pid_t pid;
    enum blk_state state;
    uint64_t size; /* bytes; 0 unless open */
    bool read_only;
    size_t export_count;
    struct blk_export_state exports[BLK_EXPORTS_MAX];
};

/* What the server holds now. */
int blk_hello(struct blk_client *client, struct blk_hello *ret_hello, struct error *err);

struct blk_geometry {
    uint64_t size;      /* bytes */
    uint32_t alignment; /* bytes: requests that keep it are fast */
    uint32_t preferred; /* bytes: cluster size */
};

/* Open the chain, top first. Once for a server. cache_bytes 0 = the engine's default. */
int blk_open(struct blk_client *client, const struct blk_layer *layers, size_t count, bool read_only,
             uint64_t cache_bytes, struct blk_geometry *ret_geometry, struct error *err);

struct blk_export {
    const char *name;
    const char *kind; /* "vhost-user-blk", "nbd" or "fuse" */
    unsigned queues;  /* 0 = the transport's default */
    bool read_only;
    const char *serial; /* NULL = none */
    bool resumed;       /* FUSE: an earlier server used this descriptor and is dead: take its requests over */
};

/* `fd` is the listening socket, or the opened and mounted /dev/fuse; it stays the caller's. */
int blk_export(struct blk_client *client, const struct blk_export *export, int fd, struct error *err);
/* Requests end, clients are dropped. -ENOENT when there is no such export. */
int blk_unexport(struct blk_client *client, const char *name, struct error *err);
/* Grow the image and tell every export's clients. */
int blk_resize(struct blk_client *client, uint64_t size, struct error *err);
/* Freeze the top layer and put `layer` (an empty image over it, with a writer's lock) on top, under load. `id` (at most
 * 64 bytes) names the new top: the same request again is answered with success. The old top's lock becomes a reader's.
 * After an error other than -EPIPE and the like the image goes on as it was. */
int blk_snapshot(struct blk_client *client, const char *id, const struct blk_layer *layer, struct error *err);
/* Flush, then answer none of the exports' requests until blk_release, the deadline (at most 30 s), or the end of this
 * connection. -EBUSY: held already, or requests wait for space. Meanwhile blk_hello, blk_stats and blk_snapshot_held are
 * answered; blk_unexport and blk_close end it. */
int blk_hold(struct blk_client *client, unsigned deadline_ms, uint64_t *ret_token, struct error *err);
/* *ret_held (may be NULL): it lasted until now. */
int blk_release(struct blk_client *client, uint64_t token, bool *ret_held, struct error *err);
/* blk_snapshot within a hold: -ESTALE (code "hold-expired") when that has ended, and nothing was changed. */
int blk_snapshot_held(struct blk_client *client, const char *id, const struct blk_layer *layer, uint64_t token,
                      struct error *err);
/* The raw image's file, its only layer, is reflinked to the empty file `fd` at one moment, under load; durable when it
 * returns. `id` as above. -EOPNOTSUPP (code "reflink-not-possible"): the file system cannot. After any error the image goes on as it
 * was. */
int blk_reflink(struct blk_client *client, const char *id, int fd, struct error *err);
/* For how long the last blk_snapshot or blk_reflink of this client held requests back, in microseconds. */
uint64_t blk_snapshot_pause_us(const struct blk_client *client);
/* `layers` (top first, each with a reader's lock) take the place of all layers below the top, under load. They must read as
 * the old ones do wherever the top holds nothing: one of the old ones was merged into the next by blk_worker_commit. That
 * may run while this server reads both, when it has opened the lower one for reading only (as this call does), both have one
 * size, and no cluster of the lower one is compressed or shared: what it changes there is then covered by the upper one. */
int blk_rebase(struct blk_client *client, const struct blk_layer *layers, size_t count, struct error *err);
/* "pause": requests without space wait for it. "fail" (at first): they end with ENOSPC, also those that wait now. */
int blk_policy(struct blk_client *client, const char *on_no_space, struct error *err);
int blk_flush(struct blk_client *client, struct error *err);
/* {"condition": {state: "ok"|"no-space"|"failed", cause, waiting, refused},
 *  "exports": [{name, kind, reads, writes, flushes, discards, read_bytes, write_bytes, errors, clients}]}: the
 * caller's reference. */
int blk_stats(struct blk_client *client, json_t **ret_stats, struct error *err);

/* End exports, flush, close the image and wait until the process is gone. An error tells that the last flush failed;
 * the process has ended then, too, unless the error is -ETIMEDOUT. Removes the socket file. The client is still to be
 * disconnected. */
int blk_close(struct blk_client *client, struct error *err);

/* SIGKILL, and wait until the process is gone (or -ETIMEDOUT). Removes the socket file. */
int blk_kill(struct blk_client *client, struct error *err);

/* ---- workers ----------------------------------------------------------------------------------------------- */

/* How one worker runs. NULL in the calls below = all defaults. */
struct blk_worker {
    const char *binary; /* as in blk_spawn */
    int stall_ms;       /* killed after so long without a sign of progress (-ETIMEDOUT); 0 = 5 minutes */
    bool has_cancel;
    int cancel_fd; /* with has_cancel: once readable or hung up the worker is ended and the call gives -ECANCELED */
    /* Bytes done of total; on the calling thread. NULL = not wanted. */
    void (*progress)(void *context, uint64_t done, uint64_t total);
    void *context;
    uint64_t bytes_per_second; /* blk_worker_commit: data copied no faster; 0 = no bound */
};

/* What a new image is to be; as image_create_options of backends/format. Zero = the format's default. */
struct blk_create {
    const char *format;
    uint64_t size; /* bytes */
    uint32_t cluster_size;
    uint32_t version;
    bool extended_l2;
    const char *compression;
    uint32_t refcount_bits;
    const char *backing;
    const char *backing_format;
    bool preallocate;
    const char *note; /* qcow2: a text kept in the header, NULL = none */
};

/* Was a worker of ours killed in the last seconds? The kernel ends its ring, and with it the locks of its files, some time after
 * the process has gone. Any thread. */
bool blk_worker_may_linger(void);

/* Make the empty file `fd` an image. Durable when it returns. */
int blk_worker_create(const struct blk_worker *worker, int fd, const struct blk_create *create, struct error *err);

/* What an image file says of itself. */
struct blk_info {
    uint64_t size;
    uint32_t cluster_size;
    uint32_t version;
    uint32_t refcount_bits;
    bool extended_l2;
    bool dirty, corrupt, encrypted, external_data;
    uint32_t snapshots;
    char compression[8];
    char backing[1024];
    char backing_format[32];
    char note[1001];
};
int blk_worker_probe(const struct blk_worker *worker, int fd, const char *format, struct blk_info *ret_info,
                     struct error *err);

/* Copy what the chain `from` (top first) reads as into a new image in the empty file `target`. to->size 0 = the
 * source's size; larger = grown; smaller is refused. Sparse stays sparse. Durable when it returns. `ret_bytes`: bytes
 * of data written; may be NULL. After an error or a cancel the target holds rubbish: remove it. */
int blk_worker_convert(const struct blk_worker *worker, const struct blk_layer *from, size_t count, int target,
                       const struct blk_create *to, uint64_t *ret_bytes, struct error *err);

/* Grow an image that no server has open. */
int blk_worker_resize(const struct blk_worker *worker, const struct blk_layer *layers, size_t count, uint64_t size,
                      struct error *err);

struct blk_shrink {
    uint64_t size;
    bool discard_data; /* content that is not known may be cut off */
    bool check_only;   /* only look what stands in the way */
};

/* Cut the image. -EOPNOTSUPP: codes "content-beyond" (a file system or partitions need the end), "data-beyond",
 * "has-layers". An image of that size or smaller already is left as it is. */
int blk_worker_shrink(const struct blk_worker *worker, const struct blk_layer *layers, size_t count,
                      const struct blk_shrink *shrink, struct error *err);

/* Write what layers[0] holds itself (data and zeros) into layers[1], which is open for writing; the same again after a
 * crash is harmless. Durable when it returns; layers[0] is not changed. layers[1] grows to layers[0]'s size. `count`
 * may be larger: the layers below give what copy on write needs. */
int blk_worker_commit(const struct blk_worker *worker, const struct blk_layer *layers, size_t count, struct error *err);

/* As struct image_check of backends/format. */
struct blk_check {
    uint64_t clusters, allocated, compressed, leaks, low_counts, copied_flags, bad_entries, double_use, repaired;
    bool dirty, corrupt;
};
/* Compare counts with tables of one image file that no server has open; with `repair` put right what can be. */
int blk_worker_check(const struct blk_worker *worker, int fd, const char *format, bool repair,
                     struct blk_check *ret_check, struct error *err);

struct blk_range {
    uint64_t offset, length; /* bytes */
    bool zero;               /* reads as zeros */
};

#define BLK_CHANGED_MAX 1024

struct blk_changed {
    size_t count;
    struct blk_range ranges[BLK_CHANGED_MAX]; /* ascending */
    uint64_t next;                            /* where to ask on; at `size` all was told */
    uint64_t size;                            /* of the image */
};
/* What the upper `since` layers hold, from `offset` on; since 0 = all layers: what is allocated. At most `limit` ranges, 0 = as
 * many as there is room for. */
int blk_worker_changed(const struct blk_worker *worker, const struct blk_layer *layers, size_t count, unsigned since,
                       uint64_t offset, unsigned limit, struct blk_changed *ret_changed, struct error *err);

/* Write what the upper `since` layers hold into a new image in the empty file `target`, data and zeros, nothing else. `to`
 * names the base as its backing file, as a label; its size is the chain's. Durable when it returns. */
int blk_worker_export_since(const struct blk_worker *worker, const struct blk_layer *layers, size_t count,
                            unsigned since, int target, const struct blk_create *to, uint64_t *ret_bytes,
                            struct error *err);

/* What an incremental file must be, and the image that it is applied to. */
struct blk_import {
    const char *note;
    uint64_t base_size; /* of the image */
    uint64_t size;      /* of the file */
    unsigned unchanged; /* so many upper layers of the image must hold nothing */
};
/* Apply the qcow2 file `file` to the image, whose top is open for writing and grows to its size. Refused before anything is
 * written: codes "wrong-file", "size-mismatch", "damaged-file", "corrupt-image", "changed-since". */
int blk_worker_import_onto(const struct blk_worker *worker, int file, const struct blk_layer *layers, size_t count,
                           const struct blk_import *import, uint64_t *ret_bytes, struct error *err);

/* Do the first and last MiB read as zeros, through the format? */
int blk_worker_blank(const struct blk_worker *worker, const struct blk_layer *layers, size_t count, bool *ret_blank,
                     struct error *err);

#endif
