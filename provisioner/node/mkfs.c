// SPDX-License-Identifier: Apache-2.0
#include "provisioner/node/mkfs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "provisioner/node/process.h"

#define MKFS_DEADLINE_MS 300000
#define EXT4_RESIZE_FS _IOW('f', 16, uint64_t) /* EXT4_IOC_RESIZE_FS: not in the kernel's exported headers */

static int flush_device(const char *device, struct error *err)
{
    CLEANUP_CLOSE int fd = open(device, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_sys(err, errno, "open %s", device);
    return fsync(fd) < 0 ? error_sys(err, errno, "flush %s", device) : 0;
}

/*
 * Nothing is discarded (the image is thin and new) and as little as possible is written: ext4's inode tables and journal are
 * left as they are when they are known to read as zeros, else the kernel clears them in the background after mounting.
 */
int mkfs_format(const char *device, const char *filesystem, bool zeroed, int cancel_fd, struct error *err)
{
    const char *const ext4[] = {"mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=0",
                                device,      NULL};
    const char *const ext4_zeroed[] = {"mkfs.ext4", "-q", "-F", "-E", "nodiscard,assume_storage_prezeroed=1",
                                       device,      NULL};
    const char *const xfs[] = {"mkfs.xfs", "-q", "-f", "-K", device, NULL};
    int r;
    if (strcmp(filesystem, "ext4") == 0) {
        r = process_run(zeroed ? ext4_zeroed : ext4, MKFS_DEADLINE_MS, cancel_fd, err);
        if (r == -EIO && zeroed) /* e2fsprogs before 1.47 does not know the option */
            r = process_run(ext4, MKFS_DEADLINE_MS, cancel_fd, err);
    } else if (strcmp(filesystem, "xfs") == 0) {
        r = process_run(xfs, MKFS_DEADLINE_MS, cancel_fd, err);
    } else {
        return error_set(err, EOPNOTSUPP, "cannot make a file system of type '%s'", filesystem);
    }
    return r < 0 ? r : flush_device(device, err);
}

int mkfs_grow(const char *target, const char *filesystem, unsigned long long size, struct error *err)
{
    if (strcmp(filesystem, "xfs") == 0) {
        const char *const grow[] = {"xfs_growfs", "-d", target, NULL};
        return process_run(grow, MKFS_DEADLINE_MS, -1, err);
    }
    if (strcmp(filesystem, "ext4") != 0)
        return error_set(err, EOPNOTSUPP, "cannot grow a file system of type '%s'", filesystem);
    CLEANUP_CLOSE int fd = open(target, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct statfs fs;
    if (fd < 0 || fstatfs(fd, &fs) < 0)
        return error_sys(err, errno, "look at '%s'", target);
    uint64_t blocks = size / (uint64_t)fs.f_bsize;
    if (ioctl(fd, EXT4_RESIZE_FS, &blocks) == 0)
        return 0;
    int r = error_sys(err, errno, "grow the file system at '%s'", target);
    if (r == -EPERM)
        (void)error_hint(err, "the kernel wants CAP_SYS_RESOURCE of platterd for a mounted ext4; the volume has grown");
    return r;
}
