// SPDX-License-Identifier: Apache-2.0
/*
 * The file system is reached by an open directory whose device is compared: what else may have been mounted at the path
 * meanwhile is never frozen.
 */
#include "provisioner/node/freeze.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "common/cleanup.h"

static int open_mounted(const char *path, dev_t rdev, int *ret_fd, struct error *err)
{
    struct stat st;
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return error_sys(err, errno, "open '%s'", path);
    if (fstat(fd, &st) < 0)
        return error_sys(err, errno, "look at '%s'", path);
    if (st.st_dev != rdev)
        return error_set(err, ENOENT, "the volume is not mounted at '%s'", path);
    *ret_fd = steal_fd(&fd);
    return 0;
}

int freeze_begin(const char *path, dev_t rdev, struct error *err)
{
    CLEANUP_CLOSE int fd = -1;
    int r = open_mounted(path, rdev, &fd, err);
    if (r < 0)
        return r;
    if (ioctl(fd, FIFREEZE, 0) < 0 && errno != EBUSY) /* EBUSY: frozen already */
        return error_sys(err, errno, "freeze the file system at '%s'", path);
    return 0;
}

int freeze_end(const char *path, dev_t rdev, struct error *err)
{
    CLEANUP_CLOSE int fd = -1;
    int r = open_mounted(path, rdev, &fd, err);
    if (r == -ENOENT)
        return 0;
    if (r < 0)
        return r;
    if (ioctl(fd, FITHAW, 0) < 0 && errno != EINVAL) /* EINVAL: not frozen */
        return error_sys(err, errno, "thaw the file system at '%s'", path);
    return 0;
}
