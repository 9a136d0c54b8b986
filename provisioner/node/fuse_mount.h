/* SPDX-License-Identifier: Apache-2.0 */
/* The one-file FUSE mounts over which platter-blk offers an image to a loop device. */
#ifndef PLATTER_PROVISIONER_NODE_FUSE_MOUNT_H
#define PLATTER_PROVISIONER_NODE_FUSE_MOUNT_H

#include "common/error.h"

#define FUSE_MOUNT_TYPE "fuse.platter"

/* Make the regular file `path` (its directory exists) and mount a FUSE connection on it. The descriptor is the
 * connection: hand it to platter-blk; the mount answers nothing before that, and is dead when the last copy is closed.
 * A dead mount left over at `path` is replaced. */
int fuse_mount(const char *path, int *ret_fd, struct error *err);

/* Unmount and remove the file. Idempotent; works when the server is dead. -EBUSY (code "target-busy") when a loop
 * device or somebody else has the file open. */
int fuse_unmount(const char *path, struct error *err);

#endif
