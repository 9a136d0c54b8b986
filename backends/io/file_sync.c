// SPDX-License-Identifier: Apache-2.0
/*
 * The blocking forms. Each is a loop over one system call with the seam around it; what direct I/O does not take goes
 * through an aligned buffer, partial blocks by read-modify-write. Any thread; they share nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "backends/io/engine.h"
#include "common/checked.h"
#include "common/cleanup.h"

#define WINDOW_BYTES (UINT64_C(1) << 20)

/* ---- the seam ---- */

static int before(struct io_file *file, const struct io_seam_event *event)
{
    return file->seam && file->seam->before ? file->seam->before(file->seam, event) : 0;
}

static int after(struct io_file *file, const struct io_seam_event *event, int result)
{
    return file->seam && file->seam->after ? file->seam->after(file->seam, event, result) : result;
}

/* ---- reading and writing ---- */

/* All of an aligned range; zeros beyond the end of the file. */
static int read_full(struct io_file *file, uint8_t *buffer, uint64_t length, uint64_t offset)
{
    while (length) {
        ssize_t n = pread(file->fd, buffer, MIN(length, (uint64_t)GIB), (off_t)offset);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0)
            return -errno;
        if (n == 0 || !is_aligned((uint64_t)n, file->offset_align)) {
            memset(buffer + n, 0, length - (uint64_t)n);
            return 0;
        }
        buffer += n;
        offset += (uint64_t)n;
        length -= (uint64_t)n;
    }
    return 0;
}

static int write_full(struct io_file *file, const uint8_t *buffer, uint64_t length, uint64_t offset)
{
    while (length) {
        ssize_t n = pwrite(file->fd, buffer, MIN(length, (uint64_t)GIB), (off_t)offset);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -EIO;
        buffer += n;
        offset += (uint64_t)n;
        length -= (uint64_t)n;
    }
    return 0;
}

static bool file_takes(const struct io_file *file, const void *buffer, uint64_t length, uint64_t offset)
{
    return is_aligned(offset | length, file->offset_align) && is_aligned((uintptr_t)buffer, file->memory_align);
}

/* Through an aligned buffer, window by window. `out` is NULL for a write, `in` NULL for a read or for zeros. */
static int bounce(struct io_file *file, uint8_t *out, const uint8_t *in, uint64_t length, uint64_t offset)
{
    uint64_t align = file->offset_align;
    uint64_t end = offset + length;
    uint64_t window = MIN(align_up(end, align) - align_down(offset, align), MAX(WINDOW_BYTES, align));
    CLEANUP_FREE uint8_t *buffer = file_buffer(file, window);
    if (!buffer)
        return -ENOMEM;
    while (offset < end) {
        uint64_t start = align_down(offset, align);
        uint64_t stop = MIN(align_up(end, align), start + window);
        uint64_t part = MIN(end, stop) - offset;
        uint8_t *at = buffer + (offset - start);
        if (out || start != offset || stop > end) {
            int r = read_full(file, buffer, stop - start, start);
            if (r < 0)
                return r;
        }
        if (out) {
            memcpy(out, at, part);
            out += part;
        } else {
            if (in)
                memcpy(at, in, part);
            else
                memset(at, 0, part);
            in = in ? in + part : NULL;
            int r = write_full(file, buffer, stop - start, start);
            if (r < 0)
                return r;
        }
        offset += part;
    }
    return 0;
}

static int transfer(struct io_file *file, uint8_t *out, const uint8_t *in, uint64_t length, uint64_t offset)
{
    if (!file_takes(file, out ? out : in, length, offset))
        return bounce(file, out, in, length, offset);
    return out ? read_full(file, out, length, offset) : write_full(file, in, length, offset);
}

/* The whole transfer in as many pieces as the seam wants. */
static int transfer_seamed(struct io_file *file, uint8_t *out, const uint8_t *in, uint64_t length, uint64_t offset)
{
    if (likely(!file->seam))
        return length ? transfer(file, out, in, length, offset) : 0;
    uint64_t done = 0;
    int r = 0;
    struct iovec whole = {out ? out : (void *)(uintptr_t)in, length};
    struct io_seam_event event = {out ? SEAM_READ : SEAM_WRITE, offset, length, &whole, 1, true};
    while (done < length && r >= 0) {
        struct iovec iov = {(uint8_t *)whole.iov_base + done, length - done};
        struct io_seam_event part = {event.kind, offset + done, length - done, &iov, 1, true};
        r = before(file, &part);
        uint64_t now = length - done;
        if (r > 0)
            now = MIN(now, align_up((uint64_t)r, file->offset_align));
        if (r >= 0)
            r = transfer(file, out ? out + done : NULL, in ? in + done : NULL, now, offset + done);
        done += now;
    }
    return after(file, &event, r);
}

int io_file_read(struct io_file *file, void *buffer, size_t length, uint64_t offset)
{
    return transfer_seamed(file, buffer, NULL, length, offset);
}

int io_file_write(struct io_file *file, const void *buffer, size_t length, uint64_t offset)
{
    return transfer_seamed(file, NULL, buffer, length, offset);
}

/* ---- the rest: one call each ---- */

static int call_flush(struct io_file *file, uint64_t offset, uint64_t length)
{
    (void)offset;
    (void)length;
    return fdatasync(file->fd) < 0 ? -errno : 0;
}

static int call_discard(struct io_file *file, uint64_t offset, uint64_t length)
{
    return fallocate(file->fd, op_fallocate_mode(IO_DISCARD), (off_t)offset, (off_t)length) < 0 ? -errno : 0;
}

static int call_zero(struct io_file *file, uint64_t offset, uint64_t length)
{
    if (fallocate(file->fd, op_fallocate_mode(IO_ZERO), (off_t)offset, (off_t)length) == 0)
        return 0;
    if (errno != EOPNOTSUPP && !(errno == EINVAL && file->block_device))
        return -errno;
    uint64_t end;
    int r = io_file_length(file, &end);
    if (r < 0 || offset >= end)
        return r;
    return bounce(file, NULL, NULL, MIN(length, end - offset), offset);
}

static int call_truncate(struct io_file *file, uint64_t offset, uint64_t length)
{
    (void)length;
    return ftruncate(file->fd, (off_t)offset) < 0 ? -errno : 0;
}

static int call_allocate(struct io_file *file, uint64_t offset, uint64_t length)
{
    uint64_t end;
    int r = io_file_length(file, &end);
    if (r < 0)
        return r;
    if (file->block_device)
        return range_within(offset, length, end) ? 0 : -ENOSPC;
    if (fallocate(file->fd, 0, (off_t)offset, (off_t)length) == 0)
        return 0;
    if (errno != EOPNOTSUPP)
        return -errno;
    return offset + length > end ? call_truncate(file, offset + length, 0) : 0;
}

static int seamed(struct io_file *file, enum io_seam_kind kind, uint64_t offset, uint64_t length,
                  int (*call)(struct io_file *file, uint64_t offset, uint64_t length))
{
    struct io_seam_event event = {.kind = kind, .offset = offset, .length = length, .blocking = true};
    if (offset > INT64_MAX || length > INT64_MAX - offset)
        return -EFBIG;
    int r = before(file, &event);
    do {
        if (r >= 0)
            r = call(file, offset, length);
    } while (r == -EINTR);
    if (kind == SEAM_FLUSH)
        r = file_flushed(file, r);
    return after(file, &event, r);
}

int io_file_flush(struct io_file *file)
{
    return seamed(file, SEAM_FLUSH, 0, 0, call_flush);
}

int io_file_reflink(struct io_file *file, int fd)
{
    int r;
    do {
        r = ioctl(fd, FICLONE, file->fd) < 0 ? -errno : 0;
    } while (r == -EINTR);
    return r == -EINVAL || r == -ENOTTY || r == -EXDEV || r == -ENOSYS ? -EOPNOTSUPP : r;
}

int io_file_discard(struct io_file *file, uint64_t offset, uint64_t length)
{
    return length ? seamed(file, SEAM_DISCARD, offset, length, call_discard) : 0;
}

int io_file_zero(struct io_file *file, uint64_t offset, uint64_t length)
{
    return length ? seamed(file, SEAM_ZERO, offset, length, call_zero) : 0;
}

int io_file_allocate(struct io_file *file, uint64_t offset, uint64_t length)
{
    return length ? seamed(file, SEAM_ALLOCATE, offset, length, call_allocate) : 0;
}

int io_file_truncate(struct io_file *file, uint64_t length)
{
    return seamed(file, SEAM_TRUNCATE, length, 0, call_truncate);
}
