// SPDX-License-Identifier: Apache-2.0
/*
 * No file system says beforehand whether it can reflink, so it is tried. The answer is kept by what tells a directory from the
 * one that may stand at the same path after a move to another file system: device, inode and time of birth.
 */
#include "backends/pool/reflink.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/cleanup.h"

#define KNOWN_MAX 64 /* directories; the oldest are asked again */
#define TRIAL_BYTES 4096

struct known {
    uint32_t major, minor;
    uint64_t inode;
    int64_t birth_s;
    uint32_t birth_ns;
    bool possible;
};

static pthread_mutex_t known_lock = PTHREAD_MUTEX_INITIALIZER;
static struct known known[KNOWN_MAX];
static size_t known_count;

static bool same(const struct known *a, const struct known *b)
{
    return a->major == b->major && a->minor == b->minor && a->inode == b->inode && a->birth_s == b->birth_s &&
           a->birth_ns == b->birth_ns;
}

/* 1 when it is possible, 0 when not, -errno when that cannot be told. */
static int try_it(int dir)
{
    static const char block[TRIAL_BYTES];
    CLEANUP_CLOSE int from = openat(dir, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (from < 0)
        return errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL ? 0 : -errno;
    CLEANUP_CLOSE int to = openat(dir, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (to < 0)
        return -errno;
    ssize_t n = write(from, block, sizeof(block));
    if (n != (ssize_t)sizeof(block))
        return n < 0 ? -errno : -ENOSPC;
    if (ioctl(to, FICLONE, from) == 0)
        return 1;
    bool cannot = errno == EOPNOTSUPP || errno == EINVAL || errno == ENOTTY || errno == EXDEV || errno == ENOSYS;
    return cannot ? 0 : -errno;
}

int reflink_probe(int dir, bool *ret_possible, struct error *err)
{
    struct statx st;
    if (statx(dir, "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &st) < 0)
        return error_sys(err, errno, "look at the pool's directory");
    struct known here = {
        .major = st.stx_dev_major,
        .minor = st.stx_dev_minor,
        .inode = st.stx_ino,
        .birth_s = st.stx_mask & STATX_BTIME ? st.stx_btime.tv_sec : 0,
        .birth_ns = st.stx_mask & STATX_BTIME ? st.stx_btime.tv_nsec : 0,
    };
    LOCK_SCOPE(&known_lock);
    for (size_t i = 0; i < MIN(known_count, (size_t)KNOWN_MAX); i++) {
        if (same(&known[i], &here)) {
            *ret_possible = known[i].possible;
            return 0;
        }
    }
    int r = try_it(dir);
    if (r < 0)
        return error_sys(err, r, "try to share blocks between two files of the pool");
    here.possible = r > 0;
    known[known_count++ % KNOWN_MAX] = here;
    *ret_possible = here.possible;
    return 0;
}
