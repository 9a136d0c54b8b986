// SPDX-License-Identifier: Apache-2.0
#include "provisioner/node/mount.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/cleanup.h"

static const struct {
    const char *word;
    unsigned set, clear;
} flags[] = {
    {"rw", 0, 0}, /* what the attachment says counts */
    {"nosuid", MOUNT_ATTR_NOSUID, 0},
    {"nodev", MOUNT_ATTR_NODEV, 0},
    {"noexec", MOUNT_ATTR_NOEXEC, 0},
    {"noatime", MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME},
    {"relatime", MOUNT_ATTR_RELATIME, MOUNT_ATTR__ATIME},
    {"strictatime", MOUNT_ATTR_STRICTATIME, MOUNT_ATTR__ATIME},
    {"nodiratime", MOUNT_ATTR_NODIRATIME, 0},
    {"ro", MOUNT_ATTR_RDONLY, 0},
};

int mount_check_target(int target_fd, const char *name, struct error *err)
{
    struct statx stx;
    if (statx(target_fd, "", AT_EMPTY_PATH | AT_NO_AUTOMOUNT, STATX_TYPE, &stx) < 0)
        return error_sys(err, errno, "look at '%s'", name);
    if (!S_ISDIR(stx.stx_mode))
        return error_sys(err, ENOTDIR, "mount on '%s'", name);
    if (stx.stx_attributes & STATX_ATTR_MOUNT_ROOT) {
        (void)error_set(err, EBUSY, "something is mounted on '%s' already", name);
        return error_code(err, "target-busy");
    }
    return 0;
}

/* What the kernel wrote on the file system context ("e ext4: ..."), as the error's text. */
static int context_error(int context, int errnum, const char *what, struct error *err)
{
    char line[256];
    ssize_t n = read(context, line, sizeof(line) - 1);
    if (n <= 2)
        return error_sys(err, errnum, "%s", what);
    line[n] = 0;
    line[strcspn(line, "\n")] = 0;
    return error_sys(err, errnum, "%s: %s", what, line + 2);
}

/* One word of the option list: a generic flag, or the file system's own. */
static int mount_option(int context, char *word, unsigned *attributes, struct error *err)
{
    for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
        if (strcmp(word, flags[i].word) == 0) {
            *attributes = (*attributes & ~flags[i].clear) | flags[i].set;
            return 0;
        }
    }
    char *value = strchr(word, '=');
    if (value)
        *value++ = 0;
    int r = fsconfig(context, value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, word, value, 0);
    if (r < 0) {
        (void)context_error(context, errno, "mount option", err);
        return error_prefix(err, "'%s'", word);
    }
    return 0;
}

static int mount_options(int context, const struct mount_request *request, unsigned *attributes, struct error *err)
{
    CLEANUP_FREE char *list = strdup(request->options ? request->options : "");
    if (!list)
        return error_sys(err, ENOMEM, "mount");
    char *state = NULL;
    for (char *word = strtok_r(list, ",", &state); word; word = strtok_r(NULL, ",", &state)) {
        int r = mount_option(context, word, attributes, err);
        if (r < 0)
            return r;
    }
    /* A copy of an image has the UUID of the original; both may be mounted. */
    if (strcmp(request->filesystem, "xfs") == 0)
        (void)fsconfig(context, FSCONFIG_SET_FLAG, "nouuid", NULL, 0);
    return 0;
}

int mount_attach(const struct mount_request *request, int target_fd, struct error *err)
{
    CLEANUP_CLOSE int context = fsopen(request->filesystem, FSOPEN_CLOEXEC);
    if (context < 0)
        return error_sys(err, errno == ENODEV ? EOPNOTSUPP : errno, "this kernel's %s", request->filesystem);
    if (fsconfig(context, FSCONFIG_SET_STRING, "source", request->device, 0) < 0)
        return context_error(context, errno, "mount", err);
    unsigned attributes = 0;
    int r = mount_options(context, request, &attributes, err);
    if (r < 0)
        return r;
    if (request->read_only) {
        attributes |= MOUNT_ATTR_RDONLY;
        if (fsconfig(context, FSCONFIG_SET_FLAG, "ro", NULL, 0) < 0)
            return context_error(context, errno, "mount read-only", err);
    }
    if (request->restricted)
        attributes |= MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
    if (fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
        return context_error(context, errno, "mount", err);
    CLEANUP_CLOSE int tree = fsmount(context, FSMOUNT_CLOEXEC, attributes);
    if (tree < 0)
        return context_error(context, errno, "mount", err);
    if (request->set_owner && fchownat(tree, "", request->uid, request->gid, AT_EMPTY_PATH) < 0)
        return error_sys(err, errno, "give the new file system to user %u", request->uid);
    if (move_mount(tree, "", target_fd, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
        return error_sys(err, errno, "put the mount in its place");
    return 0;
}

/* Open `path` for looking, following no link anywhere in it. */
static int open_canonical(const char *path, int extra)
{
    struct open_how how = {
        .flags = (uint64_t)extra | O_CLOEXEC | O_NOFOLLOW,
        .resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
    };
    int fd = (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof(how));
    return fd < 0 ? -errno : fd;
}

bool mount_is_at(const char *path, dev_t rdev)
{
    CLEANUP_CLOSE int fd = open_canonical(path, O_PATH);
    struct statx stx;
    if (fd < 0 || statx(fd, "", AT_EMPTY_PATH | AT_NO_AUTOMOUNT, STATX_TYPE, &stx) < 0)
        return false;
    return (stx.stx_attributes & STATX_ATTR_MOUNT_ROOT) && stx.stx_dev_major == major(rdev) &&
           stx.stx_dev_minor == minor(rdev);
}

static int flush_mount(const char *path, struct error *err)
{
    CLEANUP_CLOSE int fd = open_canonical(path, O_RDONLY | O_DIRECTORY);
    if (fd < 0)
        return error_sys(err, fd, "open '%s'", path);
    return syncfs(fd) < 0 ? error_sys(err, errno, "flush '%s'", path) : 0;
}

/* umount2 by parent descriptor and last name, so that a link put into the path cannot lead it elsewhere. A
 * descriptor of the mount itself would keep it busy. */
static int unmount_path(const char *path, int how)
{
    const char *slash = strrchr(path, '/');
    if (!slash || !slash[1])
        return -EINVAL;
    char parent[4096], name[4096];
    int length = slash == path ? 1 : (int)(slash - path);
    if (snprintf(parent, sizeof(parent), "%.*s", length, path) >= (int)sizeof(parent))
        return -ENAMETOOLONG;
    CLEANUP_CLOSE int dir = open_canonical(parent, O_PATH | O_DIRECTORY);
    if (dir < 0)
        return dir;
    if (snprintf(name, sizeof(name), "/proc/self/fd/%d/%s", dir, slash + 1) >= (int)sizeof(name))
        return -ENAMETOOLONG;
    return umount2(name, UMOUNT_NOFOLLOW | how) < 0 ? -errno : 0;
}

int mount_detach(const char *path, dev_t rdev, bool force, struct error *err)
{
    if (!mount_is_at(path, rdev))
        return 0;
    int r = flush_mount(path, err);
    if (r < 0 && !force)
        return r;
    r = unmount_path(path, 0);
    if (r == -EBUSY && force)
        r = unmount_path(path, MNT_DETACH);
    if (r == -EBUSY) {
        (void)error_set(err, EBUSY, "'%s' is in use: files are open or a process works in it", path);
        return error_code(err, "target-busy");
    }
    return r < 0 ? error_sys(err, r, "unmount '%s'", path) : 0;
}
