// SPDX-License-Identifier: Apache-2.0
#include "memory.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "alloc.h"
#include "fatal.h"
#include "plant.h"
#include "schedule.h"

#define PIECE 64u /* bytes: a write that fails ends at a multiple of it */

const char *const fault_names[FAULT_KINDS] = {"EIO", "ENOSPC", "short transfer", "flush EIO", "no memory"};

/* The blocking operation under way on this thread, perhaps in several pieces. */
static _Thread_local struct {
    bool busy;
    size_t entry;
    uint64_t offset;
} mine;

/* ---- faults ---- */

static bool can_fail(const struct fault *fault, int kind)
{
    if ((kind == FAULT_OF_MEMORY) != (fault->kind == FAULT_MEMORY))
        return false;
    switch (fault->kind) {
    case FAULT_EIO:
        return kind != SEAM_FLUSH;
    case FAULT_ENOSPC:
        return kind == SEAM_WRITE || kind == SEAM_ZERO || kind == SEAM_ALLOCATE;
    case FAULT_SHORT:
        return kind == SEAM_WRITE || kind == SEAM_READ;
    case FAULT_FLUSH:
        return kind == SEAM_FLUSH;
    default:
        return true;
    }
}

int fault_now(struct fault *fault, int kind, uint64_t length)
{
    if (!fault || !can_fail(fault, kind))
        return 0;
    fault->seen++;
    if (fault->seen < fault->at || (fault->seen > fault->at && !fault->sticky))
        return 0;
    fault->happened = true;
    if (fault->kind == FAULT_SHORT)
        return length > 1 ? 1 + (int)dice_roll(&fault->dice, (uint32_t)length - 1) : 0;
    return fault->kind == FAULT_ENOSPC ? -ENOSPC : -EIO;
}

/* ---- doing it ---- */

static int do_read(const struct memory *m, const struct iovec *iov, unsigned iovcnt, uint64_t offset)
{
    uint64_t length = memory_length(m);
    for (unsigned i = 0; i < iovcnt; i++) {
        uint64_t there = offset < length ? length - offset : 0;
        size_t part = iov[i].iov_len < there ? iov[i].iov_len : (size_t)there;
        if (part)
            memcpy(iov[i].iov_base, m->map + offset, part);
        memset((uint8_t *)iov[i].iov_base + part, 0, iov[i].iov_len - part);
        offset += iov[i].iov_len;
    }
    return 0;
}

static int do_write(struct memory *m, const struct iovec *iov, unsigned iovcnt, uint64_t offset, uint64_t length)
{
    if (offset + length > m->room)
        return -ENOSPC;
    if (offset + length > memory_length(m))
        memory_set_length(m, offset + length);
    for (unsigned i = 0; i < iovcnt && length; i++) {
        size_t part = iov[i].iov_len < length ? iov[i].iov_len : (size_t)length;
        memcpy(m->map + offset, iov[i].iov_base, part);
        offset += part;
        length -= part;
    }
    return 0;
}

static int do_zero(struct memory *m, uint64_t offset, uint64_t length)
{
    uint64_t end = memory_length(m);
    if (offset < end)
        memset(m->map + offset, 0, length < end - offset ? length : end - offset);
    return 0;
}

static int perform(struct memory *m, const struct io_op *op)
{
    switch (op->kind) {
    case IO_READ:
        return do_read(m, op->iov, op->iovcnt, op->offset);
    case IO_WRITE:
        return do_write(m, op->iov, op->iovcnt, op->offset, op->length);
    case IO_DISCARD:
    case IO_ZERO:
        return do_zero(m, op->offset, op->length);
    default:
        return 0;
    }
}

/* ---- recording ---- */

static size_t record(struct memory *m, enum io_seam_kind kind, const struct io_seam_event *event, uint64_t length)
{
    m->operations++;
    if (!m->trace || kind == SEAM_READ)
        return SIZE_MAX;
    if (plant == PLANT_DROP_FLUSH && kind == SEAM_FLUSH && m->operations % 3 == 0)
        return SIZE_MAX;
    return trace_issue(m->trace, kind, event->offset, length, event->iov, event->iovcnt);
}

static void record_done(struct memory *m, size_t entry, bool failed)
{
    if (entry == SIZE_MAX || !m->trace)
        return;
    if (plant == PLANT_EARLY_DONE && m->trace->entries[entry].kind == SEAM_WRITE && entry % 7 == 0)
        return;
    trace_done(m->trace, entry, failed);
}

static enum io_seam_kind kind_of(enum io_kind kind)
{
    static const enum io_seam_kind kinds[] = {SEAM_READ, SEAM_WRITE, SEAM_FLUSH, SEAM_DISCARD, SEAM_ZERO};
    return kinds[kind];
}

/* ---- operations of loops ---- */

/* The engine itself is to see a transfer that the kernel cut short, so the kernel does it. */
static void end_short(struct memory *m, struct io_loop *loop, struct io_op *op, unsigned bytes)
{
    m->cut = op;
    m->cut_bytes = bytes;
    io_seam_release(loop, op);
    while (m->cut)
        (void)schedule_real_turn(loop, 100);
}

/* A write that fails may have done a part. */
static void fail(struct memory *m, const struct io_op *op, size_t entry)
{
    uint64_t length =
        op->kind == IO_WRITE && m->fault ? dice_roll(&m->fault->dice, (uint32_t)op->length / PIECE + 1) * PIECE : 0;
    if (length)
        (void)do_write(m, op->iov, op->iovcnt, op->offset, length);
    if (entry != SIZE_MAX && m->trace)
        trace_shorten(m->trace, entry, length);
}

static void end_held(void *context, struct io_loop *loop, struct io_op *op)
{
    struct memory *m = context;
    size_t entry = (size_t)op->progress;
    op->progress = 0;
    int r = fault_now(m->fault, kind_of(op->kind), op->length);
    if (r > 0) {
        if (entry != SIZE_MAX && m->trace)
            trace_done(m->trace, entry, false);
        end_short(m, loop, op, (unsigned)r);
        return;
    }
    if (r == 0)
        r = perform(m, op);
    if (r < 0)
        fail(m, op, entry);
    record_done(m, entry, r < 0);
    if (plant == PLANT_HIDDEN_ERROR && op->kind == IO_WRITE)
        r = 0;
    io_seam_finish(loop, op, r);
}

static bool memory_hold(struct io_seam *seam, struct io_loop *loop, struct io_op *op)
{
    struct memory *m = (struct memory *)seam;
    struct io_seam_event event = {.offset = op->offset, .iov = op->iov, .iovcnt = op->iovcnt};
    op->progress = record(m, kind_of(op->kind), &event, op->length);
    if (schedule_active())
        schedule_hold(loop, op, end_held, m);
    else
        end_held(m, loop, op);
    return true;
}

/* ---- blocking operations ---- */

static int memory_before(struct io_seam *seam, const struct io_seam_event *event)
{
    struct memory *m = (struct memory *)seam;
    if (!event->blocking) {
        int bytes = (int)m->cut_bytes;
        m->cut_bytes = 0;
        return bytes;
    }
    bool grows = event->kind == SEAM_WRITE || event->kind == SEAM_ALLOCATE || event->kind == SEAM_TRUNCATE;
    schedule_note(event->offset << 8 | event->kind);
    if (!mine.busy) {
        mine.busy = true;
        mine.entry = record(m, event->kind, event, event->length);
        mine.offset = event->offset;
    }
    schedule_yield();
    int r = fault_now(m->fault, event->kind, event->length);
    if (grows && event->offset + event->length > m->room)
        r = -ENOSPC;
    if (r < 0 && mine.entry != SIZE_MAX)
        trace_shorten(m->trace, mine.entry, event->offset - mine.offset);
    return r;
}

static int memory_after(struct io_seam *seam, const struct io_seam_event *event, int result)
{
    struct memory *m = (struct memory *)seam;
    if (!event->blocking) {
        if (m->cut && event->kind == kind_of(m->cut->kind) && event->offset == m->cut->offset &&
            event->length == m->cut->length)
            m->cut = NULL;
        return result;
    }
    record_done(m, mine.entry, result < 0);
    mine.busy = false;
    schedule_yield();
    return result;
}

/* ---- life ---- */

void memory_create(struct memory *m, uint64_t room)
{
    *m = (struct memory){.room = room};
    m->seam = (struct io_seam){.before = memory_before, .after = memory_after, .hold = memory_hold};
    m->fd = memfd_create("image", MFD_CLOEXEC);
    MUST(m->fd >= 0);
    m->map = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, 0);
    MUST(m->map != MAP_FAILED);
}

void memory_destroy(struct memory *m)
{
    (void)munmap(m->map, m->room);
    (void)close(m->fd);
    *m = (struct memory){.fd = -1};
}

struct io_file *memory_open(struct memory *m, bool writable)
{
    struct io_file_options options = {.writable = writable, .buffered = true};
    struct io_file *file = NULL;
    struct fault *fault = memory_fault(NULL);
    MUST(io_file_open(fcntl(m->fd, F_DUPFD_CLOEXEC, 3), &options, &file, NULL) == 0);
    io_file_set_seam(file, &m->seam);
    (void)memory_fault(fault);
    return file;
}

uint64_t memory_length(const struct memory *m)
{
    struct stat st;
    MUST(fstat(m->fd, &st) == 0);
    return (uint64_t)st.st_size;
}

void memory_set_length(struct memory *m, uint64_t length)
{
    MUST(length <= m->room && ftruncate(m->fd, (off_t)length) == 0);
}

void memory_copy(struct memory *m, const struct memory *from)
{
    uint64_t length = memory_length(from);
    memory_set_length(m, length);
    memcpy(m->map, from->map, length);
}
