/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An open block volume: a chain of layers (the top one takes writes, those below are frozen) behind one
 * interface that knows no format.
 *
 * Threads: image_open, image_resize, image_snapshot, image_rebase, image_drain_* and image_close belong to one control thread
 * and may block; queues may come and go on their own threads meanwhile. I/O goes through a `struct image_queue`, one for each loop that serves the image; image_submit runs on that
 * loop's thread, never blocks and allocates nothing. Queues work in parallel; reading a mapped cluster takes no
 * lock.
 *
 * Promises: a completed flush covers every request that completed before it was submitted, on any queue. What
 * was never written reads as zeros (or as the layer below), never as anything else. An fsync error is sticky.
 */
#ifndef PLATTER_BACKENDS_FORMAT_IMAGE_H
#define PLATTER_BACKENDS_FORMAT_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "backends/io/io.h"
#include "common/error.h"

struct image;
struct image_queue;

/* ---- requests -------------------------------------------------------------------------------------------- */

enum image_op {
    IMAGE_READ,
    IMAGE_WRITE,
    IMAGE_WRITE_ZEROES, /* reads as zeros afterwards, whatever lies below */
    IMAGE_DISCARD,      /* a hint: gives space back; reads as zeros or as before, never as the layer below newly
                           uncovered */
    IMAGE_FLUSH,        /* offset and length are ignored */
    IMAGE_STATUS,       /* fills `status` from `offset` on */
};

enum {
    IMAGE_FUA = 1 << 0,       /* WRITE, WRITE_ZEROES: durable when done */
    IMAGE_MAY_UNMAP = 1 << 1, /* WRITE_ZEROES: may give the space back */
    IMAGE_NO_WAIT = 1 << 2,   /* never waits for space; may be set on the loop's thread until done(): a wait ends soon,
                                 and the request is not tried again */
};

/* One run of equal state, for IMAGE_STATUS. */
struct image_extent {
    uint64_t length; /* bytes */
    uint32_t state;  /* IMAGE_EXTENT_* bits */
};
enum {
    IMAGE_EXTENT_ALLOCATED = 1 << 0, /* some layer holds bytes for it (or says zero) */
    IMAGE_EXTENT_ZERO = 1 << 1,      /* reads as zeros without looking at data */
    IMAGE_EXTENT_ABSENT = 1 << 2, /* with `layers` only, and then alone: none of those layers holds anything, what lies
                                        below them shows through (zeros, where nothing does) */
};

struct image_status {
    struct image_extent *extents; /* the caller's array; neighbours are merged */
    unsigned max;                 /* entries in it */
    unsigned count;               /* entries filled; they cover a prefix (at least one extent) of the range */
};

struct layer_queue;

/* A request slot, owned by the export, free again once done() was called. Memory behind iov stays valid until
 * then. Offset and length may have any alignment; those that keep image_geometry's alignment are fast. */
struct image_request {
    enum image_op op;
    uint32_t flags;
    uint64_t offset; /* bytes */
    uint64_t length; /* bytes; READ and WRITE: the sum of iov */
    const struct iovec *iov;
    unsigned iovcnt;
    struct image_status *status;
    uint32_t layers; /* STATUS: ask the upper so many layers only; 0 = all of them */
    /* On the loop's thread, also possible within image_submit. result: 0 or -errno (-EIO, -ENOSPC, -EINVAL out of
     * range, -EROFS, -EOPNOTSUPP). A failed write leaves its range old, new or mixed; nothing else changes. */
    void (*done)(struct image_request *request, int result);

    /* The engine's own, from image_submit to done(). */
    struct image_queue *queue;
    struct image_request *next;
    uint64_t position; /* bytes of the request already handed out as chunks */
    uint32_t pending;  /* chunks in flight, plus one while handing out */
    uint32_t epoch;    /* parity in which it counts as in flight */
    int result;        /* first error of a chunk */
    uint32_t stage;
    uint32_t starved; /* times put aside for want of space */
    void *owner;      /* for requests that the engine itself makes */
    void (*chain)(struct image_request *request, int result);
    struct io_op io; /* for the layer that has the request: one operation without a pool */
};

void image_submit(struct image_queue *queue, struct image_request *request);

/* ---- opening ---------------------------------------------------------------------------------------------- */

/* One layer: its file and the format that its record names. Formats are never guessed. */
struct image_layer {
    const char *format;   /* "raw" or "qcow2" */
    struct io_file *file; /* taken over by image_open on success only */
};

struct image_options {
    bool read_only;
    size_t cache_bytes; /* bound for cached tables of the whole chain; 0 = default (enough for 256 GiB of 64 KiB
                           clusters at most) */
    bool alone;         /* with read_only and one layer: open it although it names a layer below. What it leaves to that
                           one reads as zeros */
    bool verify_only;   /* open checks everything but starts no thread and writes nothing */
    bool wait_for_space; /* see image_wait_for_space */
};

/* Open layers[0] (top) over layers[1..]. An image that names a backing or data file which `layers` does not
 * supply is refused (-EINVAL, code "backing-not-given"); likewise unknown features ("unsupported-feature"),
 * damaged headers and tables out of bounds ("corrupt-image"). */
int image_open(const struct image_layer *layers, size_t count, const struct image_options *options,
               struct image **ret_image, struct error *err);

/* All queues must be gone. Writes metadata back, returns unused reservations, flushes. Frees in any case; the
 * error tells that the last flush failed. NULL is allowed. */
int image_close(struct image *image, struct error *err);

struct image_geometry {
    uint64_t size;      /* bytes */
    uint32_t alignment; /* bytes: requests keeping it need no serialising */
    uint32_t preferred; /* bytes: cluster size, or 4096 for raw */
    bool read_only;
    bool discard; /* discard and unmapping zeroes give space back */
};
void image_geometry(const struct image *image, struct image_geometry *ret_geometry);

/* The control thread: grow (-EINVAL for smaller sizes, code "shrink-refused") while queues go on serving: requests
 * wait for a moment. Durable when it returns. New space reads as zeros. */
int image_resize(struct image *image, uint64_t size, struct error *err);

/* The control thread, without queues: cut the image at `size`, a multiple of 512 below its own. What lies beyond was given
 * back before (IMAGE_WRITE_ZEROES that may unmap) and flushed: the image may grow again and must then read zeros there.
 * Durable when it returns. -EOPNOTSUPP (code "has-layers"): it has layers below, which would show again. */
int image_shrink(struct image *image, uint64_t size, struct error *err);

/* The control thread: freeze the top layer and put `layer` (an empty qcow2 image of the same size, made to have the old
 * top as its backing file) above it, while queues go on serving: requests wait for a moment, whose length does not
 * depend on the image's size. All that was completed before is durable in the frozen layer when it returns. `layer->file`
 * is taken over on success only; after an error the image goes on as it was. -EINVAL: read-only, sizes differ, the new
 * layer is not empty; -E2BIG: too many layers. */
int image_snapshot(struct image *image, const struct image_layer *layer, struct error *err);

/* The control thread: `fd`, an empty file open for writing on the same file system, becomes what the image is at one moment,
 * by sharing its blocks, while queues go on serving: requests wait for that moment, whose length grows with the number of
 * extents that the file system has for the image, not with its size. All that was completed before is durable in `fd`
 * when it returns. After an error the image goes on as it was, and what `fd` holds does not count. -EINVAL: read-only, or
 * not a raw image alone; -EOPNOTSUPP (code "reflink-not-possible"): the file system cannot. */
int image_reflink(struct image *image, int fd, struct error *err);

/* The control thread: `layers` (top first, opened for reading) take the place of all layers below the top, while queues go on
 * serving: requests wait for a moment. They must read as the old ones did wherever the top holds nothing itself (one of the
 * old ones was merged into the next), which is not checked. The files are taken over on success only; the old ones are closed
 * then. After an error the image goes on as it was. */
int image_rebase(struct image *image, const struct image_layer *layers, size_t count, struct error *err);

/* How long the last successful image_snapshot or image_reflink held requests back, in nanoseconds. The control thread. */
uint64_t image_snapshot_pause(const struct image *image);

/* The control thread: wait until no request is in flight on any queue and hold new ones back, until
 * image_drain_end. Needs the queues' loops to run. May be nested: the last end lets requests go on. image_snapshot may be
 * called in between, and nothing is written from outside before the end; a flush in between would wait for ever. */
void image_drain_begin(struct image *image);
void image_drain_end(struct image *image);

/* Any thread: what becomes of writes and flushes for which there is no space. true: they wait, without counting as in
 * flight, and are tried again until there is some; reads, writes that need no space and flushes of what is complete go
 * on. false (the default): they end with -ENOSPC at once, also those that wait already. */
void image_wait_for_space(struct image *image, bool wait);
/* Loop's thread: requests of this queue do not wait, whatever the policy (it is about to be stopped), until told
 * otherwise. They may end within the call. */
void image_queue_refuse_wait(struct image_queue *queue, bool refuse);

/* How the image is. Any thread. */
struct image_condition {
    int failed;       /* 0, or the -errno that fenced it: every write and flush ends with it until it is opened anew */
    unsigned waiting; /* requests that wait for space */
    uint64_t refused; /* requests that ended with -ENOSPC so far */
};
void image_condition(const struct image *image, struct image_condition *ret_condition);

/* ---- queues ------------------------------------------------------------------------------------------------ */

/* Both on the loop's thread; may allocate. No request may be in flight at destroy. At most 64 for an image. */
int image_queue_create(struct image *image, struct io_loop *loop, struct image_queue **ret_queue, struct error *err);
struct image_queue *image_queue_destroy(struct image_queue *queue);

struct io_loop *image_queue_loop(const struct image_queue *queue);
struct image *image_queue_image(const struct image_queue *queue);

/* ---- creating and describing ------------------------------------------------------------------------------- */

#define IMAGE_NOTE_MAX 1000

struct image_create_options {
    uint64_t size;              /* bytes, multiple of 512 */
    uint32_t cluster_size;      /* qcow2: 512 .. 2 MiB, 0 = 65536 */
    uint32_t version;           /* qcow2: 2 or 3, 0 = 3 */
    bool extended_l2;           /* qcow2: 32 subclusters; cluster_size >= 16384 */
    const char *compression;    /* qcow2: "zlib" or "zstd", NULL = zlib: what compressed clusters use */
    uint32_t refcount_bits;     /* qcow2: 1 .. 64, 0 = 16 */
    const char *backing;        /* qcow2: name to record (never followed by us), or NULL */
    const char *backing_format; /* format name to record with it */
    const char *note;           /* qcow2 version 3: text to keep in the header, at most IMAGE_NOTE_MAX bytes, or NULL */
    bool preallocate;           /* raw: fallocate the whole size; qcow2: -EOPNOTSUPP */
};

/* Make the empty file behind `file` an image. Durable when it returns. */
int image_create(struct io_file *file, const char *format, const struct image_create_options *options,
                 struct error *err);

/* What an image file says of itself, read without opening its chain. */
struct image_info {
    uint64_t size;
    uint32_t cluster_size;
    uint32_t version;
    uint32_t refcount_bits;
    bool extended_l2;
    bool dirty, corrupt, encrypted, external_data;
    uint32_t snapshots;
    char compression[8];
    char backing[1024];      /* "" = none */
    char backing_format[32]; /* "" = not said */
    char note[IMAGE_NOTE_MAX + 1];
};
int image_probe(struct io_file *file, const char *format, struct image_info *ret_info, struct error *err);

/* ---- checking ------------------------------------------------------------------------------------------------ */

struct image_check_options {
    bool repair;         /* needs a file open for writing; else nothing is written, whatever the header says */
    size_t memory_bytes; /* bound for counts held at once; more passes over the tables when less; 0 = 64 MiB */
    /* Bytes of tables looked at, of an estimate; nonzero ends the check with -ECANCELED. May be NULL. */
    int (*progress)(void *context, uint64_t done, uint64_t total);
    void *context;
};

struct image_check {
    uint64_t clusters;     /* of the file */
    uint64_t allocated;    /* guest clusters with data */
    uint64_t compressed;   /* of these */
    uint64_t leaks;        /* host clusters counted but not used (or counted more often) */
    uint64_t low_counts;   /* host clusters used but counted less often: writing would corrupt */
    uint64_t copied_flags; /* entries whose "copied" bit does not agree with the count */
    uint64_t bad_entries;  /* L1, L2, table entries that point nowhere, are not aligned, or set reserved bits */
    uint64_t double_use;   /* host clusters with two users that may not share: both may be written */
    uint64_t repaired;     /* of all these, now right */
    bool dirty, corrupt;   /* the header's bits as found */
};

/* Compare an image's reference counts with its tables (active, internal snapshots, bitmaps). One file: layers below are
 * not needed. 0 also when something is wrong: the counters tell. -EUCLEAN: the header is unusable. With repair, in this
 * order, each durable before the next: leaks are returned, low counts raised, copied flags set right, entries that point
 * nowhere cleared (their range reads as below or as zeros), the dirty and corrupt bits cleared once nothing is wrong. A
 * crash at any moment leaves an image that is no worse. Raw: all zeros. */
int image_check(struct io_file *file, const char *format, const struct image_check_options *options,
                struct image_check *ret_check, struct error *err);

#endif
