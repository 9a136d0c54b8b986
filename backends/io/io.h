/* SPDX-License-Identifier: Apache-2.0 */
/*
 * I/O: files, the loop of one thread, and the operations that travel through it.
 *
 * A `struct io_loop` belongs to one thread: only that thread may call it, except io_loop_post. It runs on
 * io_uring, or, where the host has none, on a pool of threads with the same behaviour; callers cannot tell
 * them apart. An operation is a caller-owned `struct io_op`: nothing is allocated between io_submit and done().
 *
 * A turn of the loop: hooks' before_wait() -> submit all that was queued, wait for the first completion, all in
 * one system call -> done() of everything that completed -> posted tasks. So whatever a turn's completions
 * queue leaves together.
 *
 * Image bytes are reached through `struct io_file` only. Every open, read, write, discard, allocation and flush
 * of it passes one seam (seam.h), where tests record, reorder, tear, delay and fail.
 */
#ifndef PLATTER_BACKENDS_IO_IO_H
#define PLATTER_BACKENDS_IO_IO_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "common/error.h"

/* ---- files ---------------------------------------------------------------------------------------------- */

struct io_seam; /* seam.h: NULL outside tests */

/* An open image file or block device. Read-only after io_file_open but for flush_error; any thread may use it. */
struct io_file {
    int fd;
    bool writable;
    bool direct; /* opened O_DIRECT: offset, length and memory must keep the alignments below */
    bool block_device;
    uint32_t offset_align; /* bytes, power of two; 1 when not direct */
    uint32_t memory_align; /* bytes, power of two; 1 when not direct */
    uint32_t index;        /* slot in the loops' registered files, or UINT32_MAX */
    struct io_seam *seam;
    /* 0 or the -errno of the first flush that failed: from then on all fail with it. The kernel tells of lost writes once,
     * and forgets them. */
    _Atomic int flush_error;
};

struct io_file_options {
    bool writable;
    /* The caller will keep offsets and lengths at multiples of this (its cluster or logical block size). Where
     * the file system's direct I/O needs more, the file is used through the page cache instead. 0 = 4096. */
    uint32_t granularity;
    bool buffered; /* never O_DIRECT */
};

/* Take `fd` (owned by the file from then on, also on failure) as an image file. Sets or clears O_DIRECT on it by
 * what the file system can do. May block. */
int io_file_open(int fd, const struct io_file_options *options, struct io_file **ret_file, struct error *err);
/* Closes the descriptor. NULL is allowed. Returns NULL. */
struct io_file *io_file_close(struct io_file *file);
/* Give up direct I/O on `file`, while no operation is in flight on it (a raw image whose length direct I/O could not
 * keep). 0 or -errno. */
int io_file_use_page_cache(struct io_file *file);

/* Blocking forms, for control paths, workers and the keeper thread; any thread. They bounce what the alignments
 * do not allow (so unaligned writes need the caller to be alone on the touched blocks, and one that ends beyond the
 * end of the file extends it to the next block boundary) and finish short transfers. Reading beyond the end gives zeros. 0 or -errno. */
int io_file_read(struct io_file *file, void *buffer, size_t length, uint64_t offset);
int io_file_write(struct io_file *file, const void *buffer, size_t length, uint64_t offset);
/* Durable data and size (fdatasync). */
int io_file_flush(struct io_file *file);
/* Let the file `fd`, on the same file system, become what this one is now, by sharing its blocks (FICLONE). Not durable
 * yet. -EOPNOTSUPP where the file system cannot. */
int io_file_reflink(struct io_file *file, int fd);
/* Give the range back; it reads as zeros. -EOPNOTSUPP where the file system cannot. Size unchanged. */
int io_file_discard(struct io_file *file, uint64_t offset, uint64_t length);
/* Make the range read as zeros, staying allocated; falls back to writing zeros. Size unchanged. */
int io_file_zero(struct io_file *file, uint64_t offset, uint64_t length);
/* Allocate [offset, offset + length), moving the end of the file if beyond it; new space reads as zeros. Where
 * the file system cannot allocate ahead the file is only extended. -ENOSPC when there is no room. */
int io_file_allocate(struct io_file *file, uint64_t offset, uint64_t length);
int io_file_truncate(struct io_file *file, uint64_t length);
/* Length in bytes of the file or device. */
int io_file_length(struct io_file *file, uint64_t *ret_length);
/* Whether data or a hole lies at `offset`, and where that ends (UINT64_MAX: at the end of the file). Everything is data
 * where the file system does not tell. Does not read: cheap enough for a loop's thread. */
int io_file_extent(struct io_file *file, uint64_t offset, bool *ret_data, uint64_t *ret_end);

/* ---- operations ------------------------------------------------------------------------------------------ */

enum io_kind {
    /* On an io_file, through the seam. Result: 0 or -errno. Short transfers are finished, reads beyond the end
     * are zeros, what direct I/O cannot take is bounced as by the blocking forms. iov must stay valid until done(). */
    IO_READ,
    IO_WRITE,
    IO_FLUSH,
    IO_DISCARD,
    IO_ZERO,
    /* On a plain descriptor (sockets, /dev/fuse). Result: bytes or -errno, once, as the system call gave it. Where it
     * would block, the operation waits until the descriptor is ready; only READV and WRITEV end with -EAGAIN instead
     * when the descriptor has O_NONBLOCK and its kind knows no RWF_NOWAIT (/dev/fuse; not sockets or pipes). */
    IO_FD_READV,
    IO_FD_WRITEV,
    IO_FD_RECVMSG,
    IO_FD_SENDMSG,
};

struct io_op {
    enum io_kind kind;
    struct io_file *file;    /* IO_READ .. IO_ZERO */
    int fd;                  /* IO_FD_* */
    const struct iovec *iov; /* IO_READ, IO_WRITE, IO_FD_READV, IO_FD_WRITEV */
    unsigned iovcnt;
    struct msghdr *message; /* IO_FD_RECVMSG, IO_FD_SENDMSG */
    uint64_t offset;
    uint64_t length; /* bytes; for reads and writes the sum of iov */
    /* Runs on the loop's thread, never inside io_submit; may submit the same op again. */
    void (*done)(struct io_op *op, int result);

    struct io_op *next; /* the loop's own */
    uint64_t progress;  /* the loop's own: bytes done of a short transfer */
};

struct io_loop;

/* Queue `op`; it leaves with the turn. Never blocks, never fails: errors arrive by done(). */
void io_submit(struct io_loop *loop, struct io_op *op);

/* ---- readiness, tasks, hooks ------------------------------------------------------------------------------ */

/* Readiness of a descriptor, again and again until removed (multishot poll). Edge-triggered: ready() comes once at the
 * start if it is ready then, and for each wake-up after; who reads must read until -EAGAIN. An eventfd need not be
 * read at all: each write to it is reported. */
struct io_watch {
    int fd;
    uint32_t events;                                         /* POLLIN, POLLOUT */
    void (*ready)(struct io_watch *watch, uint32_t revents); /* also with POLLERR or POLLHUP */
    uint32_t generation;                                     /* the loop's own */
    bool active;                                             /* the loop's own */
};
int io_watch_add(struct io_loop *loop, struct io_watch *watch);
/* After it returns ready() is not called any more, and the watch's memory may go. The descriptor may be closed. */
void io_watch_remove(struct io_loop *loop, struct io_watch *watch);

/* A function to be run on the loop's thread, at the end of a turn. Caller-owned, free for reuse once run. */
struct io_task {
    void (*run)(struct io_task *task);
    struct io_task *next; /* the loop's own */
};
/* Any thread. Wakes the loop. A task must not be posted again before it ran. Tasks that no turn ran are run by
 * io_loop_destroy. */
void io_loop_post(struct io_loop *loop, struct io_task *task);

/* Called each turn just before the loop submits and sleeps: the place to publish a batch of results. */
struct io_hook {
    /* Returns true when it found new work, so that the loop must not sleep this turn. */
    bool (*before_wait)(struct io_hook *hook);
    struct io_hook *next; /* the loop's own */
};
void io_loop_add_hook(struct io_loop *loop, struct io_hook *hook);
void io_loop_remove_hook(struct io_loop *loop, struct io_hook *hook);

/* A one-shot timer. Re-arm from fire() for a period. */
struct io_timer {
    void (*fire)(struct io_timer *timer);
    uint64_t deadline_ns;  /* the loop's own: CLOCK_MONOTONIC */
    struct io_timer *next; /* the loop's own */
    bool armed;            /* the loop's own */
};
void io_timer_arm(struct io_loop *loop, struct io_timer *timer, uint64_t delay_ns);
void io_timer_cancel(struct io_loop *loop, struct io_timer *timer);

/* ---- the loop --------------------------------------------------------------------------------------------- */

enum io_engine { IO_ENGINE_AUTO, IO_ENGINE_URING, IO_ENGINE_THREADS };

struct io_loop_options {
    enum io_engine engine; /* AUTO: io_uring where the kernel lets us, else threads. The environment variable
                              PLATTER_IO_ENGINE=uring|threads decides for AUTO, so one suite tests both. */
    unsigned depth;        /* operations in flight that should need no queueing inside; 0 = 256 */
};

/* To be called on the thread that will run the loop (SINGLE_ISSUER). May block. */
int io_loop_create(const struct io_loop_options *options, struct io_loop **ret_loop, struct error *err);
/* No operation may be in flight. NULL is allowed. Returns NULL. */
struct io_loop *io_loop_destroy(struct io_loop *loop);

/* One turn. Sleeps until something completes unless timeout_ms runs out first (-1 = no limit, 0 = only look).
 * Returns the number of completions dispatched, or -errno when the ring itself failed. */
int io_loop_turn(struct io_loop *loop, int timeout_ms);
/* Turns until io_loop_stop, which any thread may call. */
int io_loop_run(struct io_loop *loop);
void io_loop_stop(struct io_loop *loop);

enum io_engine io_loop_engine(const struct io_loop *loop);

/* Give the loop `file` as a registered file where the kernel can; silently does without. Loop's thread. */
void io_loop_register_file(struct io_loop *loop, struct io_file *file);
void io_loop_unregister_file(struct io_loop *loop, struct io_file *file);

/* Lock the ring to the operations listed in enum io_kind, poll and timeout, so that a broken parser cannot open
 * or connect by it (IORING_REGISTER_RESTRICTIONS). Before the first turn: -EBUSY afterwards. -EOPNOTSUPP where the
 * kernel or the engine cannot. */
int io_loop_restrict(struct io_loop *loop);

#endif
