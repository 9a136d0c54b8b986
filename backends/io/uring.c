// SPDX-License-Identifier: Apache-2.0
/*
 * The io_uring engine. One io_uring_enter a turn submits everything queued and waits; a full submission queue is the
 * only other reason to enter the kernel. Operations in flight are bounded below the completion queue's size, so that
 * it does not overflow; what is beyond waits in the loop's own list.
 *
 * The ring is made disabled and enabled at the first turn: only a disabled ring takes restrictions, and the thread
 * that enables it becomes the one that may issue (SINGLE_ISSUER). user_data carries an io_op's address, or a tag in its
 * low bits.
 */
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "backends/io/engine.h"
#include "common/checked.h"

/* For what outlives an operation: readiness events, answers to removals. */
#define CQ_RESERVE 256u
#define LENGTH_MAX (1u << 30) /* one system call; more is a short transfer */

enum { TAG_OP = 0, TAG_WATCH = 1, TAG_WAKE = 2, TAG_IGNORE = 3, TAG_MASK = 7 };

struct uring {
    struct io_uring ring;
    bool made, enabled, has_files, taskrun_flag;
    unsigned in_flight;
    unsigned limit;
    struct io_file *files[IO_REGISTERED_FILES]; /* what this ring's slots hold */
};

/* ---- submission ---- */

static int uring_enable(struct uring *u)
{
    if (likely(u->enabled))
        return 0;
    int r = io_uring_register((unsigned)u->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
    if (r < 0)
        return r;
    u->enabled = true;
    (void)io_uring_register_ring_fd(&u->ring); /* saves a lookup; works without */
    return 0;
}

static struct io_uring_sqe *uring_sqe(struct uring *u)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    if (likely(sqe != NULL))
        return sqe;
    if (uring_enable(u) == 0)
        (void)io_uring_submit(&u->ring);
    return io_uring_get_sqe(&u->ring);
}

static inline void set_file(const struct uring *u, struct io_uring_sqe *sqe, const struct io_file *file)
{
    if (u->files[file->index % IO_REGISTERED_FILES] == file) {
        sqe->fd = (int)file->index;
        sqe->flags |= IOSQE_FIXED_FILE;
    }
}

static inline void prepare_transfer(const struct uring *u, struct io_uring_sqe *sqe, const struct io_op *op)
{
    struct iovec rest;
    unsigned count;
    const struct iovec *iov = op_next_iov(op, &rest, &count);
    uint64_t offset = op->offset + op->progress;
    bool write = op->kind == IO_WRITE;
    if (count == 1)
        io_uring_prep_rw(write ? IORING_OP_WRITE : IORING_OP_READ, sqe, op->file->fd, iov->iov_base,
                         (unsigned)MIN(iov->iov_len, LENGTH_MAX), offset);
    else
        io_uring_prep_rw(write ? IORING_OP_WRITEV : IORING_OP_READV, sqe, op->file->fd, iov, count, offset);
    set_file(u, sqe, op->file);
}

static bool uring_start(struct io_loop *loop, struct io_op *op)
{
    struct uring *u = loop->state;
    if (unlikely(u->in_flight >= u->limit))
        return false;
    struct io_uring_sqe *sqe = uring_sqe(u);
    if (unlikely(!sqe))
        return false;
    switch (op->kind) {
    case IO_READ:
    case IO_WRITE:
        prepare_transfer(u, sqe, op);
        break;
    case IO_FLUSH:
        io_uring_prep_fsync(sqe, op->file->fd, IORING_FSYNC_DATASYNC);
        set_file(u, sqe, op->file);
        break;
    case IO_DISCARD:
    case IO_ZERO:
        io_uring_prep_fallocate(sqe, op->file->fd, op_fallocate_mode(op->kind), op->offset, op->length);
        set_file(u, sqe, op->file);
        break;
    case IO_FD_READV:
        io_uring_prep_readv(sqe, op->fd, op->iov, op->iovcnt, (uint64_t)-1);
        break;
    case IO_FD_WRITEV:
        io_uring_prep_writev(sqe, op->fd, op->iov, op->iovcnt, (uint64_t)-1);
        break;
    case IO_FD_RECVMSG:
        io_uring_prep_recvmsg(sqe, op->fd, op->message, 0);
        break;
    case IO_FD_SENDMSG:
        io_uring_prep_sendmsg(sqe, op->fd, op->message, MSG_NOSIGNAL);
        break;
    }
    sqe->user_data = (uintptr_t)op | TAG_OP;
    u->in_flight++;
    return true;
}

/* ---- readiness ---- */

static bool arm_poll(struct uring *u, int fd, uint32_t events, uint64_t user_data)
{
    struct io_uring_sqe *sqe = uring_sqe(u);
    if (!sqe)
        return false;
    io_uring_prep_poll_multishot(sqe, fd, events);
    sqe->user_data = user_data;
    return true;
}

/* Generations keep 29 of their 32 bits here: enough to tell an event from one that is 2^29 removals older. */
static uint64_t watch_data(uint64_t key)
{
    return key << 3 | TAG_WATCH;
}

static uint64_t watch_key(struct io_loop *loop, uint64_t user_data)
{
    uint64_t key = user_data >> 3;
    uint32_t index = (uint32_t)key;
    if (index < loop->watches_size)
        key |= (uint64_t)(loop->watches[index].generation & 0xe0000000u) << 32;
    return key;
}

static int uring_watch(struct io_loop *loop, int fd, uint32_t events, uint64_t key)
{
    return arm_poll(loop->state, fd, events, watch_data(key)) ? 0 : -EBUSY;
}

static void uring_unwatch(struct io_loop *loop, int fd, uint64_t key)
{
    struct uring *u = loop->state;
    (void)fd;
    struct io_uring_sqe *sqe = uring_sqe(u);
    if (!sqe)
        return; /* the poll goes with the ring; its events find no watch */
    io_uring_prep_poll_remove(sqe, watch_data(key));
    sqe->user_data = TAG_IGNORE;
}

static bool complete_watch(struct io_loop *loop, uint64_t user_data, int result, unsigned flags)
{
    uint64_t key = watch_key(loop, user_data);
    if (result == -ECANCELED)
        return false;
    bool called = watch_dispatch(loop, key, result < 0 ? POLLERR : (uint32_t)result);
    if (likely(flags & IORING_CQE_F_MORE) || result < 0)
        return called;
    struct watch_slot *slot = watch_find(loop, key);
    if (slot)
        (void)arm_poll(loop->state, slot->fd, slot->watch->events, user_data);
    return called;
}

/* ---- turns ---- */

static int enter(struct uring *u, int64_t timeout_ns)
{
    if (timeout_ns < 0)
        return io_uring_submit_and_wait(&u->ring, 1);
    if (timeout_ns > 0) {
        struct __kernel_timespec ts = {timeout_ns / 1000000000, timeout_ns % 1000000000};
        struct io_uring_cqe *cqe;
        return io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &ts, NULL);
    }
    unsigned flags = __atomic_load_n(u->ring.sq.kflags, __ATOMIC_RELAXED);
    if (u->taskrun_flag && !io_uring_sq_ready(&u->ring) && !(flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)))
        return 0;
    return io_uring_submit_and_get_events(&u->ring);
}

static int reap(struct io_loop *loop)
{
    struct uring *u = loop->state;
    unsigned ready = io_uring_cq_ready(&u->ring);
    unsigned head = *u->ring.cq.khead;
    int count = 0;
    /* Only what is there now: done() may enter the kernel when the submission queue is full and bring in more. */
    for (unsigned i = 0; i < ready; i++) {
        const struct io_uring_cqe *cqe = &u->ring.cq.cqes[(head + i) & u->ring.cq.ring_mask];
        uint64_t data = cqe->user_data;
        switch (data & TAG_MASK) {
        case TAG_OP:
            u->in_flight--;
            op_complete(loop, (struct io_op *)(uintptr_t)data, cqe->res);
            count++;
            break;
        case TAG_WATCH:
            count += complete_watch(loop, data, cqe->res, cqe->flags);
            break;
        case TAG_WAKE:
            if (unlikely(!(cqe->flags & IORING_CQE_F_MORE)))
                (void)arm_poll(u, loop->wake_fd, POLLIN, TAG_WAKE);
            break;
        default:
            break;
        }
    }
    io_uring_cq_advance(&u->ring, ready);
    return count;
}

static int uring_turn(struct io_loop *loop, int64_t timeout_ns)
{
    struct uring *u = loop->state;
    int r = uring_enable(u);
    if (r < 0)
        return r;
    r = enter(u, timeout_ns);
    if (unlikely(r < 0 && r != -EINTR && r != -ETIME && r != -EAGAIN && r != -EBUSY))
        return r;
    return reap(loop);
}

/* ---- registered files, restrictions ---- */

static void uring_register_file(struct io_loop *loop, struct io_file *file)
{
    struct uring *u = loop->state;
    if (u->has_files && io_uring_register_files_update(&u->ring, file->index, &file->fd, 1) == 1)
        u->files[file->index] = file;
}

static void uring_unregister_file(struct io_loop *loop, struct io_file *file)
{
    struct uring *u = loop->state;
    int none = -1;
    if (u->files[file->index] != file)
        return;
    u->files[file->index] = NULL;
    /* What is queued but not submitted still names the slot. */
    if (u->enabled && io_uring_sq_ready(&u->ring))
        (void)io_uring_submit(&u->ring);
    (void)io_uring_register_files_update(&u->ring, file->index, &none, 1);
}

static int uring_restrict(struct io_loop *loop)
{
    static const uint8_t ops[] = {
        IORING_OP_READ,     IORING_OP_WRITE,       IORING_OP_READV,   IORING_OP_WRITEV,
        IORING_OP_FSYNC,    IORING_OP_FALLOCATE,   IORING_OP_RECVMSG, IORING_OP_SENDMSG,
        IORING_OP_POLL_ADD, IORING_OP_POLL_REMOVE, IORING_OP_TIMEOUT, IORING_OP_NOP,
    };
    static const uint8_t registers[] = {
        IORING_REGISTER_FILES_UPDATE,
        IORING_REGISTER_ENABLE_RINGS,
        IORING_REGISTER_RING_FDS,
        IORING_UNREGISTER_RING_FDS,
    };
    struct uring *u = loop->state;
    struct io_uring_restriction list[ARRAY_SIZE(ops) + ARRAY_SIZE(registers) + 1];
    unsigned count = 0;
    memset(list, 0, sizeof(list));
    for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
        list[count].opcode = IORING_RESTRICTION_SQE_OP;
        list[count++].sqe_op = ops[i];
    }
    for (size_t i = 0; i < ARRAY_SIZE(registers); i++) {
        list[count].opcode = IORING_RESTRICTION_REGISTER_OP;
        list[count++].register_op = registers[i];
    }
    list[count].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
    list[count++].sqe_flags = IOSQE_FIXED_FILE;
    if (u->enabled)
        return -EBUSY;
    int r = io_uring_register((unsigned)u->ring.ring_fd, IORING_REGISTER_RESTRICTIONS, list, count);
    return r < 0 ? -EOPNOTSUPP : 0;
}

/* ---- life ---- */

/* The best set of flags that this kernel takes. */
static int make_ring(struct uring *u, unsigned depth)
{
    static const unsigned choices[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
        IORING_SETUP_SUBMIT_ALL,
        0,
    };
    int r = -EINVAL;
    for (size_t i = 0; i < ARRAY_SIZE(choices); i++) {
        struct io_uring_params params = {
            .flags = choices[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED,
            .cq_entries = depth * 2 + CQ_RESERVE * 2,
        };
        r = io_uring_queue_init_params(depth, &u->ring, &params);
        if (r == -EINVAL)
            continue;
        if (r < 0)
            return r;
        u->made = true;
        u->taskrun_flag = choices[i] & IORING_SETUP_TASKRUN_FLAG;
        u->limit = params.cq_entries - CQ_RESERVE;
        return (params.features & IORING_FEAT_EXT_ARG) && (params.features & IORING_FEAT_NODROP) ? 0 : -EOPNOTSUPP;
    }
    return r;
}

/* Multishot poll is the youngest feature used without a fallback: refuse kernels without it (before 5.13). */
static int check_kernel(struct uring *u)
{
    unsigned workers[2] = {IO_WORKERS, IO_WORKERS};
    u->has_files = io_uring_register_files_sparse(&u->ring, IO_REGISTERED_FILES) == 0;
    int r = io_uring_register_iowq_max_workers(&u->ring, workers); /* 5.15 */
    return r < 0 ? -EOPNOTSUPP : 0;
}

/* The kernel maps a new ring where one of another thread was before: to be seen by race detectors, which do not know its
 * system calls. */
static _Atomic unsigned rings_ended;

static void uring_destroy(struct io_loop *loop)
{
    struct uring *u = loop->state;
    if (u && u->made) {
        (void)atomic_fetch_add_explicit(&rings_ended, 1, memory_order_release);
        io_uring_queue_exit(&u->ring);
    }
    free(u);
    loop->state = NULL;
}

static int uring_create(struct io_loop *loop, unsigned depth, struct error *err)
{
    struct uring *u = calloc(1, sizeof(*u));
    if (!u)
        return error_sys(err, ENOMEM, "create an io_uring");
    loop->state = u;
    int r = make_ring(u, depth);
    (void)atomic_load_explicit(&rings_ended, memory_order_acquire);
    if (r == 0)
        r = check_kernel(u);
    if (r == 0 && !arm_poll(u, loop->wake_fd, POLLIN, TAG_WAKE))
        r = -EBUSY;
    return r < 0 ? error_sys(err, r, "create an io_uring") : 0;
}

const struct io_engine_ops uring_engine_ops = {
    .kind = IO_ENGINE_URING,
    .create = uring_create,
    .destroy = uring_destroy,
    .start = uring_start,
    .turn = uring_turn,
    .watch = uring_watch,
    .unwatch = uring_unwatch,
    .register_file = uring_register_file,
    .unregister_file = uring_unregister_file,
    .restrict_ops = uring_restrict,
};
