/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that a caller names, reached with the caller's rights: a short-lived child takes the caller's uid, gid and
 * groups, does the one call and hands the descriptor back. All block for at most 10 s (-ETIMEDOUT: a hung file system).
 */
#ifndef PLATTER_PROVISIONER_NODE_RIGHTS_H
#define PLATTER_PROVISIONER_NODE_RIGHTS_H

#include <stddef.h>
#include <sys/types.h>

#include "common/error.h"

#define RIGHTS_GROUPS_MAX 64

struct rights {
    uid_t uid;
    gid_t gid;
    gid_t groups[RIGHTS_GROUPS_MAX];
    size_t group_count;
};

/* open(2); O_CLOEXEC and O_NOCTTY are added, and O_NONBLOCK while opening so that a pipe cannot hang it. */
int rights_open(const struct rights *rights, const char *path, int flags, mode_t mode, int *ret_fd, struct error *err);

/* A stream connection to a Unix socket. */
int rights_connect(const struct rights *rights, const char *path, int *ret_fd, struct error *err);

/* Give the file `from` the name `to`, which must not exist (-EEXIST), and flush the directory. Both in one file
 * system. */
int rights_publish(const struct rights *rights, const char *from, const char *to, struct error *err);

/* unlink(2); a missing file is fine. */
int rights_unlink(const struct rights *rights, const char *path, struct error *err);

#endif
