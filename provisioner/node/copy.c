// SPDX-License-Identifier: Apache-2.0
#include "provisioner/node/copy.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/cleanup.h"

#define COPY_CHUNK (8 * MIB) /* between two looks at cancel_fd */
#define COPY_BUFFER (1 * MIB)

static bool cancelled(int cancel_fd)
{
    struct pollfd pfd = {.fd = cancel_fd, .events = POLLIN};
    return cancel_fd >= 0 && poll(&pfd, 1, 0) == 1;
}

/* Through memory, for file systems between which the kernel does not copy. */
static ssize_t copy_by_hand(int from, int to, off_t offset, size_t length)
{
    CLEANUP_FREE char *buffer = malloc(COPY_BUFFER);
    if (!buffer)
        return -ENOMEM;
    ssize_t n = pread(from, buffer, MIN(length, COPY_BUFFER), offset);
    if (n <= 0)
        return n < 0 ? -errno : -EIO; /* it became shorter while being copied */
    for (ssize_t done = 0; done < n;) {
        ssize_t m = pwrite(to, buffer + done, (size_t)(n - done), offset + done);
        if (m < 0)
            return -errno;
        done += m;
    }
    return n;
}

static int copy_range(int from, int to, off_t offset, off_t end, int cancel_fd)
{
    bool by_kernel = true;
    while (offset < end) {
        if (cancelled(cancel_fd))
            return -ECANCELED;
        size_t length = (size_t)MIN((uint64_t)(end - offset), COPY_CHUNK);
        off_t in = offset, out = offset;
        ssize_t n = by_kernel ? copy_file_range(from, &in, to, &out, length, 0) : -1;
        if (n <= 0) {
            by_kernel = false;
            n = copy_by_hand(from, to, offset, length);
            if (n == -EINTR)
                continue;
            if (n < 0)
                return (int)n;
        }
        offset += n;
    }
    return 0;
}

static int copy_all(int from, int to, off_t size, int cancel_fd, copy_progress_fn progress, void *context)
{
    off_t offset = 0;
    while (offset < size) {
        off_t data = lseek(from, offset, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            return 0; /* only a hole is left */
        off_t hole = data < 0 ? size : lseek(from, data, SEEK_HOLE);
        if (data < 0)
            data = offset; /* a file system that knows no holes */
        if (hole < 0 || hole > size)
            hole = size;
        off_t part = (off_t)MIN((uint64_t)(hole - data), 64 * MIB);
        int r = copy_range(from, to, data, data + part, cancel_fd);
        if (r < 0)
            return r;
        offset = data + part;
        if (progress)
            progress(context, (uint64_t)offset, (uint64_t)size);
    }
    return 0;
}

static int source_size(int from, off_t *ret_size)
{
    struct stat st;
    if (fstat(from, &st) < 0)
        return -errno;
    *ret_size = S_ISREG(st.st_mode) ? st.st_size : lseek(from, 0, SEEK_END);
    return *ret_size < 0 ? -errno : 0;
}

int copy_file(int from, int to, int cancel_fd, copy_progress_fn progress, void *context, struct error *err)
{
    off_t size = 0;
    int r = source_size(from, &size);
    if (r == 0 && ftruncate(to, 0) < 0)
        r = -errno;
    if (r < 0)
        return error_sys(err, r, "copy");
    if (ioctl(to, FICLONE, from) < 0) {
        if (ftruncate(to, size) < 0)
            return error_sys(err, errno, "copy");
        r = copy_all(from, to, size, cancel_fd, progress, context);
    }
    if (r == 0 && fsync(to) < 0)
        r = -errno;
    return r < 0 ? error_sys(err, r, "copy") : 0;
}

int copy_reflink(int from, int to, uint64_t size, struct error *err)
{
    struct stat st;
    int r = ioctl(to, FICLONE, from) < 0 ? -errno : 0;
    if (r == -EOPNOTSUPP || r == -EINVAL || r == -ENOTTY || r == -EXDEV) {
        (void)error_set(err, EOPNOTSUPP, "the file system does not share blocks between these files");
        (void)error_code(err, "reflink-not-possible");
        return -EOPNOTSUPP;
    }
    if (r == 0 && (fstat(to, &st) < 0 || ((uint64_t)st.st_size < size && ftruncate(to, (off_t)size) < 0)))
        r = -errno;
    if (r == 0 && fsync(to) < 0)
        r = -errno;
    return r < 0 ? error_sys(err, r, "reflink") : 0;
}

uint64_t copy_extents(int fd)
{
    struct fiemap map = {.fm_length = FIEMAP_MAX_OFFSET};
    return ioctl(fd, FS_IOC_FIEMAP, &map) < 0 ? 0 : map.fm_mapped_extents;
}
