// SPDX-License-Identifier: Apache-2.0
#include "provisioner/node/rights.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/text.h"

#include "provisioner/node/process.h"

#define RIGHTS_DEADLINE_MS 10000

/* What the child does; everything it needs is made ready before fork. */
struct task {
    const struct rights *rights;
    const char *path;
    const char *to;
    char directory[4096]; /* of `to` */
    int flags;
    mode_t mode;
    struct sockaddr_un address;
};

/* Take the caller's identity for good. The raw calls: this process has one thread, and libc's wrappers would look
 * for the parent's others. A non-root uid loses every capability with setresuid. */
static int take_rights(const struct rights *rights)
{
    (void)umask(022);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -errno;
    if (rights->uid == 0 && geteuid() == 0)
        return 0; /* root's own rights are ours */
    if (rights->uid == geteuid() && geteuid() != 0)
        return 0; /* an unprivileged daemon, serving its own user */
    if (syscall(SYS_setgroups, rights->group_count, rights->groups) < 0 ||
        syscall(SYS_setresgid, rights->gid, rights->gid, rights->gid) < 0 ||
        syscall(SYS_setresuid, rights->uid, rights->uid, rights->uid) < 0)
        return -errno;
    return 0;
}

static int task_open(void *arg)
{
    const struct task *task = arg;
    int r = take_rights(task->rights);
    if (r < 0)
        return r;
    int fd = open(task->path, task->flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, task->mode);
    if (fd < 0)
        return -errno;
    if (!(task->flags & O_PATH) && fcntl(fd, F_SETFL, task->flags & ~O_NONBLOCK) < 0)
        return -errno;
    return fd;
}

static int task_connect(void *arg)
{
    const struct task *task = arg;
    int r = take_rights(task->rights);
    if (r < 0)
        return r;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&task->address, sizeof(task->address)) < 0)
        return -errno;
    return fd;
}

static int task_publish(void *arg)
{
    const struct task *task = arg;
    int r = take_rights(task->rights);
    if (r < 0)
        return r;
    if (syscall(SYS_renameat2, AT_FDCWD, task->path, AT_FDCWD, task->to, RENAME_NOREPLACE) < 0) {
        if (errno != EINVAL && errno != ENOSYS)
            return -errno;
        /* A file system without it: a second name, which fails when there is one, then the first one goes. */
        if (link(task->path, task->to) < 0 || unlink(task->path) < 0)
            return -errno;
    }
    int dir = open(task->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir >= 0 && fsync(dir) < 0)
        return -errno;
    return 0; /* a directory that its user may write to but not read cannot be flushed by that user */
}

static int task_unlink(void *arg)
{
    const struct task *task = arg;
    int r = take_rights(task->rights);
    if (r < 0)
        return r;
    return unlink(task->path) < 0 && errno != ENOENT ? -errno : 0;
}

int rights_open(const struct rights *rights, const char *path, int flags, mode_t mode, int *ret_fd, struct error *err)
{
    struct task task = {.rights = rights, .path = path, .flags = flags, .mode = mode};
    int r = process_child(task_open, &task, 1, RIGHTS_DEADLINE_MS);
    if (r < 0)
        return error_sys(err, r, "open '%s' as user %u", path, rights->uid);
    *ret_fd = r;
    return 0;
}

int rights_connect(const struct rights *rights, const char *path, int *ret_fd, struct error *err)
{
    struct task task = {.rights = rights, .path = path, .address = {.sun_family = AF_UNIX}};
    if (strlen(path) >= sizeof(task.address.sun_path))
        return error_set(err, ENAMETOOLONG, "socket path '%s' is too long", path);
    text_copy(task.address.sun_path, path);
    int r = process_child(task_connect, &task, 1, RIGHTS_DEADLINE_MS);
    if (r < 0)
        return error_sys(err, r, "connect to '%s' as user %u", path, rights->uid);
    *ret_fd = r;
    return 0;
}

int rights_publish(const struct rights *rights, const char *from, const char *to, struct error *err)
{
    struct task task = {.rights = rights, .path = from, .to = to};
    const char *slash = strrchr(to, '/');
    size_t length = slash && slash > to ? (size_t)(slash - to) : 1;
    if (length >= sizeof(task.directory))
        return error_set(err, ENAMETOOLONG, "path '%s' is too long", to);
    (void)snprintf(task.directory, sizeof(task.directory), "%.*s", (int)length, slash ? to : ".");
    int r = process_child(task_publish, &task, 0, RIGHTS_DEADLINE_MS);
    return r < 0 ? error_sys(err, r, "create '%s' as user %u", to, rights->uid) : 0;
}

int rights_unlink(const struct rights *rights, const char *path, struct error *err)
{
    struct task task = {.rights = rights, .path = path};
    int r = process_child(task_unlink, &task, 0, RIGHTS_DEADLINE_MS);
    return r < 0 ? error_sys(err, r, "delete '%s' as user %u", path, rights->uid) : 0;
}
