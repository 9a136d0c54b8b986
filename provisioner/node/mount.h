/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mounting a block device's file system on a directory, by descriptors: the file system is set up detached (fsopen,
 * fsmount) and then moved onto the very directory that was checked, so no path is looked up twice.
 */
#ifndef PLATTER_PROVISIONER_NODE_MOUNT_H
#define PLATTER_PROVISIONER_NODE_MOUNT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"

/* Is the directory behind `target_fd` (O_PATH will do) free to be mounted on? -ENOTDIR, or -EBUSY (code "target-busy")
 * when something is mounted there. */
int mount_check_target(int target_fd, const char *name, struct error *err);

struct mount_request {
    const char *device;
    const char *filesystem; /* "ext4", "xfs" */
    const char *options;    /* comma-separated; generic flags (nosuid, noatime, ...) and the file system's own */
    bool read_only;
    bool restricted; /* the caller is not root: no set-user-id programs, no devices */
    bool set_owner;  /* give the file system's root directory to uid, gid */
    uid_t uid;
    gid_t gid;
};

/* Mount on the directory behind target_fd. May replay a journal: takes as long as the device. */
int mount_attach(const struct mount_request *request, int target_fd, struct error *err);

/* Is the file system of block device `rdev` what is mounted at `path` (a canonical path: links are not followed)? */
bool mount_is_at(const char *path, dev_t rdev);

/* Flush the file system of `rdev` and unmount it from `path`. Idempotent: when it is not mounted there, nothing is
 * done. -EBUSY (code "target-busy") when files are open; then nothing changed. -EIO when the flush failed: it
 * stays mounted unless `force`. */
int mount_detach(const char *path, dev_t rdev, bool force, struct error *err);

#endif
