// SPDX-License-Identifier: Apache-2.0
/*
 * qemu's protocol (tried against qemu-io 7.2): for each permission there are two bytes of the file. Whoever uses the
 * permission holds a shared lock on the byte 100 + n; whoever does not suffer it in others holds one on 200 + n. First
 * both kinds are taken, which never conflicts; then each side looks whether anybody else holds the opposite
 * byte. Taking before looking makes two that come at once see each other.
 */
#include "provisioner/node/image_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <time.h>

#include "provisioner/node/blk_client.h"

enum {
    USED_BASE = 100,
    UNSHARED_BASE = 200,
    PERMISSIONS = 4,
};

enum {
    CONSISTENT_READ = 1 << 0,
    WRITE = 1 << 1,
    WRITE_UNCHANGED = 1 << 2,
    RESIZE = 1 << 3,
};

struct mode_locks {
    unsigned used;
    unsigned unshared;
};

static const struct mode_locks modes[] = {
    [IMAGE_LOCK_READER] = {CONSISTENT_READ, WRITE | RESIZE},
    [IMAGE_LOCK_WRITER] = {CONSISTENT_READ | WRITE | WRITE_UNCHANGED | RESIZE, WRITE | RESIZE},
    [IMAGE_LOCK_FOLLOWER] = {CONSISTENT_READ, 0},
};

static int lock_byte(int fd, short type, int byte)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

/* 1 when another description has a lock on `byte`; *ret_pid is its process if the kernel says so, else -1. */
static int byte_held(int fd, int byte, pid_t *ret_pid)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
        return -errno;
    *ret_pid = lock.l_pid;
    return lock.l_type != F_UNLCK;
}

static int take_bytes(int fd, const struct mode_locks *mode)
{
    for (int i = 0; i < PERMISSIONS; i++) {
        int r = 0;
        if (mode->used & (1u << i))
            r = lock_byte(fd, F_RDLCK, USED_BASE + i);
        if (r == 0 && (mode->unshared & (1u << i)))
            r = lock_byte(fd, F_RDLCK, UNSHARED_BASE + i);
        if (r < 0)
            return r;
    }
    return 0;
}

/* 1 when somebody's use is not suffered by us, or ours by somebody. */
static int find_conflict(int fd, const struct mode_locks *mode, pid_t *ret_pid)
{
    for (int i = 0; i < PERMISSIONS; i++) {
        int r = 0;
        if (mode->unshared & (1u << i))
            r = byte_held(fd, USED_BASE + i, ret_pid);
        if (r == 0 && (mode->used & (1u << i)))
            r = byte_held(fd, UNSHARED_BASE + i, ret_pid);
        if (r != 0)
            return r;
    }
    return 0;
}

static int refuse(const char *name, pid_t pid, struct error *err)
{
    int r = error_set(err, EBUSY, "image '%s' is in use: another process (such as qemu) has it open", name);
    if (!err)
        return r;
    if (pid > 0)
        (void)snprintf(err->holder, sizeof(err->holder), "process %d", (int)pid);
    (void)error_hint(err, "find it with: fuser -v %s", name);
    return error_code(err, "image-in-use");
}

static int try_take(int fd, enum image_lock_mode mode, pid_t *ret_pid)
{
    int r = take_bytes(fd, &modes[mode]);
    if (r == 0)
        r = find_conflict(fd, &modes[mode], ret_pid);
    if (r)
        image_lock_release(fd);
    return r;
}

int image_lock_take(int fd, enum image_lock_mode mode, const char *name, struct error *err)
{
    const struct timespec pause = {.tv_nsec = 10L * 1000 * 1000};
    pid_t pid = -1;
    int r = try_take(fd, mode, &pid);
    while ((r == 1 || r == -EAGAIN || r == -EACCES) && blk_worker_may_linger()) {
        (void)nanosleep(&pause, NULL);
        r = try_take(fd, mode, &pid);
    }
    if (r == 0)
        return 0;
    if (r == 1 || r == -EAGAIN || r == -EACCES)
        return refuse(name, pid, err);
    if (r == -EINVAL || r == -ENOLCK || r == -ENOSYS)
        r = -EOPNOTSUPP;
    return error_sys(err, r, "lock image '%s'", name);
}

/* All bytes but those of `mode`. */
static void release_others(int fd, const struct mode_locks *mode)
{
    for (int i = 0; i < PERMISSIONS; i++) {
        if (!(mode->used & (1u << i)))
            (void)lock_byte(fd, F_UNLCK, USED_BASE + i);
        if (!(mode->unshared & (1u << i)))
            (void)lock_byte(fd, F_UNLCK, UNSHARED_BASE + i);
    }
}

int image_lock_change(int fd, enum image_lock_mode from, enum image_lock_mode to, const char *name, struct error *err)
{
    pid_t pid = -1;
    int r = take_bytes(fd, &modes[to]);
    if (r == 0)
        r = find_conflict(fd, &modes[to], &pid);
    release_others(fd, &modes[r ? from : to]);
    if (r == 1 || r == -EAGAIN || r == -EACCES)
        return refuse(name, pid, err);
    return r < 0 ? error_sys(err, r, "lock image '%s'", name) : 0;
}

void image_lock_release(int fd)
{
    for (int i = 0; i < PERMISSIONS; i++) {
        (void)lock_byte(fd, F_UNLCK, USED_BASE + i);
        (void)lock_byte(fd, F_UNLCK, UNSHARED_BASE + i);
    }
}
