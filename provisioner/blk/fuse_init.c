// SPDX-License-Identifier: Apache-2.0
// What is said to the kernel outside the I/O threads: INIT, and notifications.
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "provisioner/blk/fuse_export.h"

#define INIT_WAIT_MS 10000
#define READ_MIN 8448u /* the kernel wants room for any request of that time */

#define FLAGS_NEEDED ((uint32_t)(FUSE_ASYNC_DIO | FUSE_BIG_WRITES | FUSE_MAX_PAGES))

static int write_all(int fd, const struct iovec *iov, int count)
{
    ssize_t n;
    do {
        n = writev(fd, iov, count);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

/* One request, waited for. Its length or -errno. */
static int read_request(int fd, void *buffer, size_t size)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    for (;;) {
        ssize_t n = read(fd, buffer, size);
        if (n >= 0)
            return (int)n;
        if (errno == EAGAIN) {
            int r = poll(&p, 1, INIT_WAIT_MS);
            if (r == 0)
                return -ETIMEDOUT;
            if (r > 0)
                continue;
        }
        if (errno != EINTR && errno != ENOENT)
            return -errno;
    }
}

static int answer_init(int fd, uint64_t unique, const struct fuse_init_in *in)
{
    uint64_t flags = FLAGS_NEEDED | FUSE_ASYNC_READ | (in->flags & FUSE_INIT_EXT);
    if (in->flags & FUSE_INIT_EXT)
        flags |= FUSE_FLAG_RESEND;
    struct fuse_init_out out = {
        .major = FUSE_KERNEL_VERSION,
        .minor = FUSE_KERNEL_MINOR_VERSION,
        .max_readahead = in->max_readahead,
        .flags = (uint32_t)flags,
        .max_background = FUSE_BACKGROUND_MAX,
        .congestion_threshold = FUSE_CONGESTION,
        .max_write = FUSE_TRANSFER_MAX,
        .time_gran = 1,
        .max_pages = FUSE_TRANSFER_PAGES,
        .flags2 = in->flags & FUSE_INIT_EXT ? (uint32_t)((flags & ((uint64_t)in->flags2 << 32)) >> 32) : 0,
    };
    struct fuse_out_header head = {.len = sizeof(head) + sizeof(out), .unique = unique};
    const struct iovec iov[] = {{&head, sizeof(head)}, {&out, sizeof(out)}};
    return write_all(fd, iov, 2);
}

int fuse_init(int fd, struct error *err)
{
    CLEANUP_FREE uint8_t *buffer = calloc(1, READ_MIN);
    if (!buffer)
        return error_sys(err, ENOMEM, "fuse: wait for INIT");
    int n = read_request(fd, buffer, READ_MIN);
    if (n < 0)
        return error_sys(err, n, "fuse: wait for INIT");
    const struct fuse_in_header *head = (void *)buffer;
    const struct fuse_init_in *in = (void *)(buffer + sizeof(*head));
    /* Older protocols send a shorter INIT; the zeros behind it say that they have no more flags. */
    if ((size_t)n < sizeof(*head) + 16 || head->opcode != FUSE_INIT)
        return error_set(err, EPROTO, "fuse: the connection does not begin with INIT");
    if (in->major != FUSE_KERNEL_VERSION || (in->flags & FLAGS_NEEDED) != FLAGS_NEEDED)
        return error_set(err, EOPNOTSUPP, "fuse: the kernel's protocol %u.%u lacks what the export needs", in->major,
                         in->minor);
    int r = answer_init(fd, head->unique, in);
    return r < 0 ? error_sys(err, r, "fuse: answer INIT") : 0;
}

int fuse_resend(int fd, struct error *err)
{
    struct fuse_out_header head = {.len = sizeof(head), .error = FUSE_NOTIFICATION_RESEND};
    const struct iovec iov = {&head, sizeof(head)};
    int r = write_all(fd, &iov, 1);
    return r < 0 ? error_sys(err, r, "fuse: ask for the requests of the server before") : 0;
}

/* A negative offset: attributes only, no pages. */
void fuse_invalidate(int fd)
{
    struct fuse_notify_inval_inode_out out = {.ino = FUSE_ROOT_ID, .off = -1, .len = 0};
    struct fuse_out_header head = {.len = sizeof(head) + sizeof(out), .error = FUSE_NOTIFY_INVAL_INODE};
    const struct iovec iov[] = {{&head, sizeof(head)}, {&out, sizeof(out)}};
    (void)write_all(fd, iov, 2); /* -ENOENT: the kernel has no such inode in memory, so it has nothing to forget */
}
