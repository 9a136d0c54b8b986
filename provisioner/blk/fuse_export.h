/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The FUSE export inside: a file system whose root is one regular file, the image.
 *
 * Threads: each is pinned to a CPU (loop's worker then wakes a thread on its own CPU) and has a loop, a queue of the
 * image and slots of its own; all read the same descriptor. A thread reads requests until there are none or its
 * slots are out, and answers through its ring together with the next file I/O.
 *
 * A slot's memory is one run of bytes: a request is read so that a WRITE's data begins at a page, and is written to
 * the image from there; an answer's data begins at the same page with its header before it. Nothing is copied.
 */
#ifndef PLATTER_PROVISIONER_BLK_FUSE_EXPORT_H
#define PLATTER_PROVISIONER_BLK_FUSE_EXPORT_H

#include <stdatomic.h>

#include "provisioner/blk/export_thread.h"
#include "provisioner/blk/fuse_protocol.h"

#define FUSE_THREADS_MAX 4u
#define FUSE_SLOTS 32u /* of each thread: 4 MiB of memory, always resident */

struct fuse_thread;
struct fuse_export;

struct fuse_slot {
    struct image_request image;
    struct iovec iov;
    struct io_op reply;
    struct iovec reply_iov;
    struct fuse_thread *thread;
    struct fuse_slot *next; /* in the free list */
    uint8_t *payload;       /* page-aligned, FUSE_TRANSFER_MAX bytes; FUSE_REQUEST_HEAD more stand before it */
    uint64_t unique;        /* the request's name, echoed as it came */
};

struct fuse_thread {
    struct export_thread base;
    struct fuse_export *export;
    struct io_watch watch;
    struct io_hook hook;
    struct io_task begin, end; /* how the control thread reaches it */
    bool listening;            /* the connection lives and we are not stopping */
    bool hungry;               /* there may be requests left that no slot was free for */
    bool stopping;
    unsigned busy; /* slots in use */
    struct fuse_slot *free;
    uint8_t *memory;
    struct fuse_slot slots[FUSE_SLOTS];
};

struct fuse_export {
    struct export base;
    struct image *image;
    int fd;                /* /dev/fuse, non-blocking */
    _Atomic uint64_t size; /* bytes */
    bool read_only;
    _Atomic unsigned connected; /* threads that have not seen the connection's end */
    unsigned thread_count;
    struct fuse_thread threads[FUSE_THREADS_MAX];
};

/* ---- fuse_thread.c ---- */

/* Control thread. Memory, slots, thread; it does not read requests yet. */
int fuse_thread_start(struct fuse_export *export, unsigned index, int cpu, enum io_engine engine, struct error *err);
/* Control thread: read requests from now on. */
void fuse_thread_listen(struct fuse_thread *thread);
/* Control thread: read no more, finish what was taken, end. stop() asks, join() waits. */
void fuse_thread_stop(struct fuse_thread *thread);
void fuse_thread_join(struct fuse_thread *thread);

/* I/O thread: answer with `length` bytes at the slot's payload, or with an error (0 or -errno; then no bytes).
 * The slot goes back when the answer was written. */
void fuse_reply(struct fuse_slot *slot, int error, uint32_t length);
/* I/O thread: there is nothing to answer. */
void fuse_reply_none(struct fuse_slot *slot);

/* ---- fuse_request.c ---- */

/* I/O thread: do the request of `length` bytes that was read into the slot. */
void fuse_request(struct fuse_slot *slot, uint32_t length);

/* ---- fuse_init.c ---- */

/* Control thread: wait for INIT on `fd` and answer it. */
int fuse_init(int fd, struct error *err);
/* Control thread: have the kernel hand out again what a dead server took and did not answer. */
int fuse_resend(int fd, struct error *err);
/* Any thread: the file's attributes have changed. */
void fuse_invalidate(int fd);

#endif
