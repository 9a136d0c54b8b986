/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making and growing file systems, and the proof that must come first: nothing is formatted that is not blank.
 */
#ifndef PLATTER_PROVISIONER_NODE_MKFS_H
#define PLATTER_PROVISIONER_NODE_MKFS_H

#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"

/* Is the device (or file) behind `fd` provably blank: its first and last MiB are readable zeros, and neither libblkid
 * nor our own list of image formats sees anything? 0 = blank; -EINVAL (code "not-blank") with what was found, also
 * for an ambiguous answer; -EIO when it cannot be read. Reads through the page cache. */
int blank_check(int fd, const char *name, struct error *err);
/* For a device that somebody could have written: every byte of it must read as zero. Blocks for as long as that takes;
 * -ECANCELED when `cancel_fd` (-1 = none) becomes readable; else as above. */
int blank_check_whole(int fd, const char *name, int cancel_fd, struct error *err);

/* The file system that libblkid sees on `fd`: "ext4", "xfs", ... -ENOENT: none; -EINVAL (code "not-blank"):
 * ambiguous. */
int mkfs_probe(int fd, char *ret_type, size_t size, struct error *err);

/* Make `filesystem` ("ext4", "xfs") on `device` and flush it to the disk. `zeroed`: the whole device is known to read
 * as zeros, so nothing has to be cleared. The caller has checked that it may. -EOPNOTSUPP for other file systems. */
int mkfs_format(const char *device, const char *filesystem, bool zeroed, int cancel_fd, struct error *err);

/* Grow the ext4 on `device`, which is not mounted, to the device's size; checked first, as its tools demand. */
int mkfs_grow_unmounted(const char *device, int cancel_fd, struct error *err);

/* Grow the file system mounted at `target` to its device's size of `size` bytes. ext4 and xfs, mounted
 * writable. -EOPNOTSUPP: the kernel lets us not (ext4 needs CAP_SYS_RESOURCE). */
int mkfs_grow(const char *target, const char *filesystem, unsigned long long size, struct error *err);

#endif
