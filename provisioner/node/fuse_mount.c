// SPDX-License-Identifier: Apache-2.0
#include "provisioner/node/fuse_mount.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <unistd.h>

#include "common/cleanup.h"

/* Unmount all that lies on `path`, however often something was mounted there. */
static int unmount_all(const char *path, struct error *err)
{
    while (umount2(path, UMOUNT_NOFOLLOW) == 0)
        continue;
    if (errno == EINVAL || errno == ENOENT)
        return 0; /* nothing is mounted there */
    (void)error_sys(err, errno, "unmount '%s'", path);
    return err && err->errnum == EBUSY ? error_code(err, "target-busy") : err ? -err->errnum : -EBUSY;
}

int fuse_mount(const char *path, int *ret_fd, struct error *err)
{
    int r = unmount_all(path, err);
    if (r < 0)
        return r;
    CLEANUP_CLOSE int point = open(path, O_CREAT | O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (point < 0)
        return error_sys(err, errno, "create '%s'", path);
    CLEANUP_CLOSE int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return error_sys(err, errno, "open /dev/fuse");
    char options[96];
    (void)snprintf(options, sizeof(options), "fd=%d,rootmode=100600,user_id=0,group_id=0", fd);
    if (mount("platter", path, FUSE_MOUNT_TYPE, MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME, options) < 0)
        return error_sys(err, errno, "mount FUSE on '%s'", path);
    *ret_fd = steal_fd(&fd);
    return 0;
}

int fuse_unmount(const char *path, struct error *err)
{
    struct error local = ERROR_INIT;
    int r = unmount_all(path, &local);
    if (r < 0)
        return error_copy(err, &local);
    if (unlink(path) < 0 && errno != ENOENT)
        return error_sys(err, errno, "remove '%s'", path);
    return 0;
}
