// SPDX-License-Identifier: Apache-2.0
/*
 * The pool in a directory. The directory is opened once by path; from then on every file is reached through that
 * descriptor with openat2 (beneath it, no links, same file system), by a name made from a checked id. So neither a
 * hostile id nor a link that somebody planted leads anywhere else, and a pool whose disk went away fails rather than
 * filling the directory below its mount point.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "backends/pool/pool.h"
#include "backends/pool/reflink.h"
#include "common/checked.h"
#include "common/cleanup.h"

#define MARKER ".platter-pool"
#define MARKER_MAX 64

struct pool_dir {
    struct pool pool;
    int fd;
};

static struct pool_dir *dir_of(struct pool *pool)
{
    return (struct pool_dir *)pool;
}

/* openat2 beneath the pool; -errno. */
static int dir_openat(int dir, const char *name, int flags, mode_t mode)
{
    struct open_how how = {
        .flags = (uint64_t)flags | O_CLOEXEC | O_NOFOLLOW,
        .mode = flags & O_CREAT ? mode : 0,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV,
    };
    int fd = (int)syscall(SYS_openat2, dir, name, &how, sizeof(how));
    return fd < 0 ? -errno : fd;
}

static int dir_name(const char *id, const char *prefix, const char *suffix, char name[POOL_FILE_NAME_MAX],
                    struct error *err)
{
    if (!pool_id_valid(id, prefix))
        return error_set(err, EINVAL, "'%s' is not an id of this pool", id);
    (void)snprintf(name, POOL_FILE_NAME_MAX, "%s%s", id, suffix);
    return 0;
}

static int write_whole(int fd, const char *text)
{
    size_t length = strlen(text);
    while (length) {
        ssize_t n = write(fd, text, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        text += n;
        length -= (size_t)n;
    }
    return 0;
}

/* Make `name` hold `text`: written aside, flushed, renamed over, the directory flushed. */
static int dir_write_file(int dir, const char *name, const char *text, struct error *err)
{
    char aside[POOL_FILE_NAME_MAX];
    (void)snprintf(aside, sizeof(aside), "%s.tmp", name);
    CLEANUP_CLOSE int fd = dir_openat(dir, aside, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0)
        return error_sys(err, fd, "create '%s' in the pool", aside);
    int r = write_whole(fd, text);
    if (r == 0 && fdatasync(fd) < 0)
        r = -errno;
    if (r == 0 && renameat(dir, aside, dir, name) < 0)
        r = -errno;
    if (r < 0) {
        (void)unlinkat(dir, aside, 0); /* what is left over is replaced by the next attempt */
        return error_sys(err, r, "write '%s' in the pool", name);
    }
    return fsync(dir) < 0 ? error_sys(err, errno, "flush the pool's directory") : 0;
}

static int dir_delete_file(int dir, const char *name, struct error *err)
{
    if (unlinkat(dir, name, 0) < 0 && errno != ENOENT)
        return error_sys(err, errno, "delete '%s' in the pool", name);
    return fsync(dir) < 0 ? error_sys(err, errno, "flush the pool's directory") : 0;
}

/* ---- the pool itself --------------------------------------------------------------------------------------- */

/* The id in the marker; -ENOENT when there is none. */
static int dir_read_marker(int dir, char id[MARKER_MAX])
{
    CLEANUP_CLOSE int fd = dir_openat(dir, MARKER, O_RDONLY, 0);
    if (fd < 0)
        return fd;
    ssize_t n = read(fd, id, MARKER_MAX - 1);
    if (n < 0)
        return -errno;
    id[n] = 0;
    id[strcspn(id, "\n")] = 0;
    return 0;
}

static int dir_open_path(const char *path, int *ret_fd, struct error *err)
{
    if (path[0] != '/')
        return error_set(err, EINVAL, "pool path '%s' is not absolute", path);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return error_sys(err, errno, "open pool '%s'", path);
    *ret_fd = fd;
    return 0;
}

static int dir_check_owner(int fd, const char *path, struct error *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return error_sys(err, errno, "look at pool '%s'", path);
    if (st.st_uid != 0 && st.st_uid != geteuid())
        return error_set(err, EPERM, "pool '%s' belongs to user %u, not to root", path, st.st_uid);
    if (st.st_mode & (S_IWOTH | S_IWGRP))
        return error_set(err, EINVAL, "pool '%s' is writable by others than its owner", path);
    return 0;
}

static int pool_dir_create(const char *path, const char *id, struct error *err)
{
    CLEANUP_CLOSE int fd = -1;
    int r = dir_open_path(path, &fd, err);
    if (r == 0)
        r = dir_check_owner(fd, path, err);
    if (r < 0)
        return r;
    char found[MARKER_MAX];
    r = dir_read_marker(fd, found);
    if (r == 0 && strcmp(found, id) == 0)
        return 0;
    if (r == 0)
        return error_set(err, EEXIST, "'%s' is pool '%s' already", path, found);
    if (r != -ENOENT)
        return error_sys(err, r, "read the marker of pool '%s'", path);
    char text[MARKER_MAX];
    (void)snprintf(text, sizeof(text), "%s\n", id);
    return dir_write_file(fd, MARKER, text, err);
}

static struct pool *pool_dir_close(struct pool *pool)
{
    if (pool) {
        close_fd(&dir_of(pool)->fd);
        free(pool);
    }
    return NULL;
}

static int pool_dir_open(const char *path, const char *id, struct pool **ret_pool, struct error *err)
{
    CLEANUP_CLOSE int fd = -1;
    int r = dir_open_path(path, &fd, err);
    if (r < 0)
        return r;
    char found[MARKER_MAX] = "";
    r = dir_read_marker(fd, found);
    if (r < 0 || strcmp(found, id) != 0) {
        (void)error_set(err, ESTALE, "'%s' holds %s%s, not pool '%s': is its disk mounted?", path,
                        r < 0 ? "no pool" : "pool ", found, id);
        return error_code(err, "pool-missing");
    }
    r = dir_check_owner(fd, path, err);
    if (r < 0)
        return r;
    struct pool_dir *dir = malloc(sizeof(*dir));
    if (!dir)
        return error_sys(err, ENOMEM, "open pool '%s'", path);
    *dir = (struct pool_dir){.pool = {.ops = &pool_dir_ops}, .fd = steal_fd(&fd)};
    *ret_pool = &dir->pool;
    return 0;
}

static int pool_dir_remove(struct pool *pool, struct error *err)
{
    return dir_delete_file(dir_of(pool)->fd, MARKER, err);
}

static int add_used(void *arg, enum pool_entry kind, const char *name, const char *id, uint64_t used)
{
    (void)name, (void)id;
    if (kind != POOL_ENTRY_FOREIGN)
        *(uint64_t *)arg += used;
    return 0;
}

static int pool_dir_walk(struct pool *pool, pool_entry_fn fn, void *arg, struct error *err);

static int pool_dir_usage(struct pool *pool, struct pool_usage *ret_usage, struct error *err)
{
    struct statvfs vfs;
    if (fstatvfs(dir_of(pool)->fd, &vfs) < 0)
        return error_sys(err, errno, "measure the pool");
    uint64_t used = 0;
    int r = pool_dir_walk(pool, add_used, &used, err);
    if (r < 0)
        return r;
    *ret_usage = (struct pool_usage){
        .capacity = vfs.f_blocks * vfs.f_frsize,
        .available = vfs.f_bavail * vfs.f_frsize,
        .used = MIN(used, (vfs.f_blocks - vfs.f_bfree) * vfs.f_frsize), /* shared blocks are counted in each file */
    };
    return 0;
}

/* ---- images and sidecars ----------------------------------------------------------------------------------- */

static int pool_dir_image_create(struct pool *pool, const char *layer_id, int *ret_fd, struct error *err)
{
    char name[POOL_FILE_NAME_MAX];
    int r = dir_name(layer_id, "lay-", ".img", name, err);
    if (r < 0)
        return r;
    CLEANUP_CLOSE int fd = dir_openat(dir_of(pool)->fd, name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0)
        return error_sys(err, fd, "create '%s' in the pool", name);
    *ret_fd = steal_fd(&fd);
    return 0;
}

static int pool_dir_image_open(struct pool *pool, const char *layer_id, bool read_only, int *ret_fd, struct error *err)
{
    char name[POOL_FILE_NAME_MAX];
    int r = dir_name(layer_id, "lay-", ".img", name, err);
    if (r < 0)
        return r;
    CLEANUP_CLOSE int fd = dir_openat(dir_of(pool)->fd, name, read_only ? O_RDONLY : O_RDWR, 0);
    if (fd < 0)
        return error_sys(err, fd, "open '%s' in the pool", name);
    struct stat st;
    if (fstat(fd, &st) < 0)
        return error_sys(err, errno, "look at '%s' in the pool", name);
    if (!S_ISREG(st.st_mode) || st.st_nlink != 1)
        return error_set(err, EINVAL, "'%s' in the pool is not a plain file with one name", name);
    *ret_fd = steal_fd(&fd);
    return 0;
}

static int pool_dir_image_delete(struct pool *pool, const char *layer_id, struct error *err)
{
    char name[POOL_FILE_NAME_MAX];
    int r = dir_name(layer_id, "lay-", ".img", name, err);
    return r < 0 ? r : dir_delete_file(dir_of(pool)->fd, name, err);
}

static int pool_dir_image_rename(struct pool *pool, const char *from, const char *to, struct error *err)
{
    char from_name[POOL_FILE_NAME_MAX], to_name[POOL_FILE_NAME_MAX];
    int fd = dir_of(pool)->fd;
    int r = dir_name(from, "lay-", ".img", from_name, err);
    if (r == 0)
        r = dir_name(to, "lay-", ".img", to_name, err);
    if (r < 0)
        return r;
    if (renameat(fd, from_name, fd, to_name) < 0)
        return error_sys(err, errno, "rename '%s' in the pool", from_name);
    return fsync(fd) < 0 ? error_sys(err, errno, "flush the pool's directory") : 0;
}

static int pool_dir_reflinks(struct pool *pool, bool *ret_possible, struct error *err)
{
    return reflink_probe(dir_of(pool)->fd, ret_possible, err);
}

static int pool_dir_image_used(struct pool *pool, const char *layer_id, uint64_t *ret_bytes, struct error *err)
{
    char name[POOL_FILE_NAME_MAX];
    int r = dir_name(layer_id, "lay-", ".img", name, err);
    if (r < 0)
        return r;
    struct stat st;
    if (fstatat(dir_of(pool)->fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return error_sys(err, errno, "look at '%s' in the pool", name);
    *ret_bytes = (uint64_t)st.st_blocks * 512;
    return 0;
}

static int pool_dir_sidecar_write(struct pool *pool, const char *volume_id, const char *text, struct error *err)
{
    char name[POOL_FILE_NAME_MAX];
    int r = dir_name(volume_id, "vol-", ".json", name, err);
    return r < 0 ? r : dir_write_file(dir_of(pool)->fd, name, text, err);
}

static int pool_dir_sidecar_delete(struct pool *pool, const char *volume_id, struct error *err)
{
    char name[POOL_FILE_NAME_MAX];
    int r = dir_name(volume_id, "vol-", ".json", name, err);
    if (r < 0)
        return r;
    char aside[POOL_FILE_NAME_MAX];
    (void)snprintf(aside, sizeof(aside), "%s.tmp", name);
    (void)unlinkat(dir_of(pool)->fd, aside, 0); /* of a write that was cut off; usually absent */
    return dir_delete_file(dir_of(pool)->fd, name, err);
}

static enum pool_entry dir_classify(const char *name, char id[POOL_FILE_NAME_MAX])
{
    static const struct {
        const char *prefix, *suffix;
        enum pool_entry kind;
    } shapes[] = {
        {"lay-", ".img", POOL_ENTRY_IMAGE},
        {"vol-", ".json", POOL_ENTRY_SIDECAR},
        {"vol-", ".json.tmp", POOL_ENTRY_TEMPORARY},
    };
    for (size_t i = 0; i < ARRAY_SIZE(shapes); i++) {
        size_t length = strlen(name), suffix = strlen(shapes[i].suffix);
        if (length <= suffix || length >= POOL_FILE_NAME_MAX || strcmp(name + length - suffix, shapes[i].suffix) != 0)
            continue;
        (void)snprintf(id, POOL_FILE_NAME_MAX, "%.*s", (int)(length - suffix), name);
        if (pool_id_valid(id, shapes[i].prefix))
            return shapes[i].kind;
    }
    id[0] = 0;
    return POOL_ENTRY_FOREIGN;
}

static int pool_dir_walk(struct pool *pool, pool_entry_fn fn, void *arg, struct error *err)
{
    int fd = openat(dir_of(pool)->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return error_sys(err, errno, "list the pool");
    CLEANUP_CLOSEDIR DIR *dir = fdopendir(fd);
    if (!dir) {
        close_fd(&fd);
        return error_sys(err, ENOMEM, "list the pool");
    }
    struct dirent *entry;
    int r = 0;
    while (r == 0 && (errno = 0, entry = readdir(dir))) {
        struct stat st;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
            strncmp(entry->d_name, MARKER, strlen(MARKER)) == 0)
            continue;
        if (fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue; /* deleted meanwhile */
        char id[POOL_FILE_NAME_MAX];
        enum pool_entry kind = dir_classify(entry->d_name, id);
        r = fn(arg, kind, entry->d_name, id, (uint64_t)st.st_blocks * 512);
    }
    return r == 0 && errno ? error_sys(err, errno, "list the pool") : r;
}

const struct pool_ops pool_dir_ops = {
    .kind = "dir",
    .create = pool_dir_create,
    .open = pool_dir_open,
    .close = pool_dir_close,
    .remove = pool_dir_remove,
    .usage = pool_dir_usage,
    .image_create = pool_dir_image_create,
    .image_open = pool_dir_image_open,
    .image_delete = pool_dir_image_delete,
    .image_rename = pool_dir_image_rename,
    .reflinks = pool_dir_reflinks,
    .image_used = pool_dir_image_used,
    .sidecar_write = pool_dir_sidecar_write,
    .sidecar_delete = pool_dir_sidecar_delete,
    .walk = pool_dir_walk,
};
