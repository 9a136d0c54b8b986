/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the I/O loop: what loop.c, op.c, bounce.c, watch.c and the two engines share. Only backends/io includes
 * this header; everything in it belongs to the loop's thread unless it says otherwise.
 *
 * The way of an operation:
 *   io_submit -> seam (tests) -> op_issue: bounce.c where direct I/O cannot take it as it is -> op_start -> engine
 *   engine -> op_complete: retries, finishes short transfers, zero-fills -> op_finish -> seam (tests) -> done()
 */
#ifndef PLATTER_BACKENDS_IO_ENGINE_H
#define PLATTER_BACKENDS_IO_ENGINE_H

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>

#include "backends/io/io.h"
#include "backends/io/seam.h"

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define IO_DEPTH_DEFAULT 256u
#define IO_DEPTH_MAX 4096u

/* Files that may hold a registered index at one time, in the whole process. */
#define IO_REGISTERED_FILES 64u

/* Background threads of one loop: the kernel's io-wq workers, or the thread pool's own. */
#define IO_WORKERS 8u

/* What distinguishes io_uring from the pool of threads. */
struct io_engine_ops {
    enum io_engine kind;
    int (*create)(struct io_loop *loop, unsigned depth, struct error *err);
    void (*destroy)(struct io_loop *loop); /* accepts a half-built engine */
    /* Queue the next system call of `op` (op_next_iov says which bytes); false when there is no room now. */
    bool (*start)(struct io_loop *loop, struct io_op *op);
    /* Hand over what was started, sleep at most timeout_ns (-1 = no limit), dispatch. Completions or -errno. */
    int (*turn)(struct io_loop *loop, int64_t timeout_ns);
    /* Report readiness of `fd`, edge-triggered, to watch_dispatch with `key`. */
    int (*watch)(struct io_loop *loop, int fd, uint32_t events, uint64_t key);
    void (*unwatch)(struct io_loop *loop, int fd, uint64_t key);
    void (*register_file)(struct io_loop *loop, struct io_file *file);
    void (*unregister_file)(struct io_loop *loop, struct io_file *file);
    int (*restrict_ops)(struct io_loop *loop);
};

extern const struct io_engine_ops uring_engine_ops;
extern const struct io_engine_ops threads_engine_ops;

/* A FIFO of operations linked by io_op.next. */
struct op_list {
    struct io_op *head;
    struct io_op **tail;
};

/* One watched descriptor. The generation tells late events of an earlier user of the slot apart. */
struct watch_slot {
    struct io_watch *watch; /* NULL = free */
    int fd;                 /* the descriptor given to the engine, the watch's own or a duplicate of it */
    bool duplicate;
    uint32_t generation;
};

struct bounce_pool;

struct io_loop {
    const struct io_engine_ops *engine;
    void *state; /* the engine's own */
    pthread_t owner;
    int wake_fd; /* eventfd, polled edge-triggered, never read */

    struct op_list queued; /* operations for which the engine had no room, or that are tried again */
    struct op_list ready;  /* ended without the kernel; op->progress carries the result */
    struct bounce_pool *bounce;

    struct io_hook *hooks;
    struct io_hook *next_hook; /* the one to be called next while hooks run */
    struct io_timer *timers;   /* soonest first */

    struct watch_slot *watches;
    unsigned watches_size;

    _Atomic(struct io_task *) posted; /* any thread: newest first */
    _Atomic unsigned posters;         /* any thread: those inside io_loop_post or io_loop_stop */
    _Atomic bool stop;                /* any thread */
};

/* ---- op.c --------------------------------------------------------------------------------------------------- */

static inline void op_list_init(struct op_list *list)
{
    list->head = NULL;
    list->tail = &list->head;
}

static inline void op_list_append(struct op_list *list, struct io_op *op)
{
    op->next = NULL;
    *list->tail = op;
    list->tail = &op->next;
}

static inline struct io_op *op_list_take(struct op_list *list)
{
    struct io_op *op = list->head;
    if (op) {
        list->head = op->next;
        if (!list->head)
            list->tail = &list->head;
    }
    return op;
}

/* The bytes that the next system call of a read or write moves: all of its iov, or, after a short transfer, the
 * rest of the entry where it stopped (in `rest`). Their place in the file is op->offset + op->progress. */
const struct iovec *op_next_iov_slow(const struct io_op *op, struct iovec *rest, unsigned *ret_count);

static inline const struct iovec *op_next_iov(const struct io_op *op, struct iovec *rest, unsigned *ret_count)
{
    if (likely(op->progress == 0 && op->iovcnt <= IOV_MAX)) {
        *ret_count = op->iovcnt;
        return op->iov;
    }
    return op_next_iov_slow(op, rest, ret_count);
}

/* fallocate's mode for IO_DISCARD and IO_ZERO. */
int op_fallocate_mode(enum io_kind kind);

/* After the seam: bounce or start. */
void op_issue(struct io_loop *loop, struct io_op *op);
/* Give to the engine, or keep until it has room. */
void op_start(struct io_loop *loop, struct io_op *op);
/* The engine's answer: bytes, 0 or -errno. May call done(). */
void op_complete(struct io_loop *loop, struct io_op *op, int result);
/* The end of an operation on a file: 0 or -errno. Calls done(). */
void op_finish(struct io_loop *loop, struct io_op *op, int result);
/* The same at the next dispatch, for callers below io_submit. */
void op_finish_later(struct io_loop *loop, struct io_op *op, int result);
/* Retry what waits; dispatch what is ready. */
void op_start_queued(struct io_loop *loop);
int op_dispatch_ready(struct io_loop *loop);

/* ---- bounce.c ----------------------------------------------------------------------------------------------- */

int bounce_create(struct io_loop *loop, struct error *err);
void bounce_destroy(struct io_loop *loop);
/* True when direct I/O cannot take the rest of `op` (a read or write) as it is. */
bool bounce_needed(const struct io_op *op);
/* Do the rest of a read, a write or IO_ZERO through aligned buffers; waits for one when none is free. */
void bounce_start(struct io_loop *loop, struct io_op *op);
/* Do only the next `length` bytes of a read or write, then ask the seam about the rest. */
void bounce_piece(struct io_loop *loop, struct io_op *op, uint64_t length);
/* True for the operations that a bounce makes itself: the seam does not see them. */
bool bounce_inner(const struct io_op *op);

/* ---- seam.c ------------------------------------------------------------------------------------------------- */

void seam_submit(struct io_loop *loop, struct io_op *op);
int seam_after(struct io_op *op, int result);

/* ---- watch.c ------------------------------------------------------------------------------------------------ */

/* Call ready() of the watch that `key` names, if it is still there. True when it was. */
bool watch_dispatch(struct io_loop *loop, uint64_t key, uint32_t revents);
/* The slot of `key`, or NULL when its watch was removed: for engines that must arm again. */
struct watch_slot *watch_find(struct io_loop *loop, uint64_t key);
void watch_destroy(struct io_loop *loop);

/* ---- file.c ------------------------------------------------------------------------------------------------- */

/* Aligned scratch memory for blocking direct I/O; free() it. */
void *file_buffer(const struct io_file *file, size_t size);

/* The result of a flush, which must fail once one of the file has failed. Any thread. */
static inline int file_flushed(struct io_file *file, int result)
{
    int before = 0;
    if (unlikely(result < 0) && atomic_compare_exchange_strong(&file->flush_error, &before, result))
        return result;
    return atomic_load(&file->flush_error);
}

#endif
