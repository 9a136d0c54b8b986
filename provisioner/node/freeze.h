/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Holding a mounted file system still for the moment of a snapshot, so that the snapshot is what a clean unmount would
 * have left: FIFREEZE writes back all that is dirty and lets every later writer wait until FITHAW.
 */
#ifndef PLATTER_PROVISIONER_NODE_FREEZE_H
#define PLATTER_PROVISIONER_NODE_FREEZE_H

#include <sys/types.h>

#include "common/error.h"

/* Freeze the file system of block device `rdev` that is mounted at `path` (canonical). May block as long as writing back
 * takes. Frozen already: 0. -ENOENT: it is not mounted there. -EOPNOTSUPP: it cannot be frozen. */
int freeze_begin(const char *path, dev_t rdev, struct error *err);

/* Let it go on. Not frozen, or not mounted there any more: 0. */
int freeze_end(const char *path, dev_t rdev, struct error *err);

#endif
