/* SPDX-License-Identifier: Apache-2.0 */
/* Copying a file byte by byte without looking inside: reflinked where the file system can, else sparse. */
#ifndef PLATTER_PROVISIONER_NODE_COPY_H
#define PLATTER_PROVISIONER_NODE_COPY_H

#include <stdint.h>

#include "common/error.h"

/* Bytes looked at so far, of all; on the calling thread. */
typedef void (*copy_progress_fn)(void *context, uint64_t done, uint64_t total);

/* Make the file `to` equal to `from`, whatever it held; holes stay holes. Durable when it returns. -ECANCELED once
 * cancel_fd (-1 = none) is readable. `progress` may be NULL. */
int copy_file(int from, int to, int cancel_fd, copy_progress_fn progress, void *context, struct error *err);

/* Make the empty file `to` equal to the file `from` by sharing its blocks, at one moment also while others write to it, and
 * extend it with a hole to `size` bytes if it is shorter. Durable when it returns. -EOPNOTSUPP (code "reflink-not-possible"):
 * the file system cannot. */
int copy_reflink(int from, int to, uint64_t size, struct error *err);

/* How many extents the file system has for the file, which is what a reflink's time grows with; 0 when it does not say. */
uint64_t copy_extents(int fd);

#endif
