/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The byte-range locks by which qemu and its tools keep each other from an image that is in use; platter takes and
 * respects the same ones, so neither side harms the other.
 *
 * They are locks of the open file description: they stay while any duplicate of the descriptor is open, in whatever
 * process. platterd takes them, platter-blk keeps them by holding the descriptor.
 */
#ifndef PLATTER_PROVISIONER_NODE_IMAGE_LOCK_H
#define PLATTER_PROVISIONER_NODE_IMAGE_LOCK_H

#include "common/error.h"

enum image_lock_mode {
    IMAGE_LOCK_READER,   /* reads, and suffers nobody who writes or resizes: frozen layers, sources of an import */
    IMAGE_LOCK_WRITER,   /* writes and resizes, and suffers nobody else who does, nor a reader who wants it unchanged */
    IMAGE_LOCK_FOLLOWER, /* reads, and suffers a writer: of platter's own, which it knows */
};

/* Take the lock; `fd` needs read access. -EBUSY with the code "image-in-use" when another open file description
 * (of any process, also ours) is in the way: then nothing is held. -EOPNOTSUPP where the file system has no such locks.
 * `name` is for the message. Waits for nobody but a worker of ours that was just killed (blk_worker_may_linger). */
int image_lock_take(int fd, enum image_lock_mode mode, const char *name, struct error *err);

/* Make the lock `from`, which is held, the lock `to`, without a moment between them. -EBUSY as above: `from` is still held. */
int image_lock_change(int fd, enum image_lock_mode from, enum image_lock_mode to, const char *name, struct error *err);

/* Give it up while the description stays open. */
void image_lock_release(int fd);

#endif
