/* SPDX-License-Identifier: Apache-2.0 */
/* Child processes with deadlines: tools (mkfs and the like), and short-lived children that act with a caller's
 * rights. */
#ifndef PLATTER_PROVISIONER_NODE_PROCESS_H
#define PLATTER_PROVISIONER_NODE_PROCESS_H

#include <sys/types.h>

#include "common/error.h"

/* Run a tool, found in the system's own directories, and wait until it has ended. It gets no input, no descriptors but
 * the standard ones, and dies with us. -ETIMEDOUT: killed after deadline_ms. -ECANCELED: killed because cancel_fd (-1 =
 * none) became readable. -EIO: it failed; the message carries the end of what it printed. -ENOENT: not installed. */
int process_run(const char *const argv[], int deadline_ms, int cancel_fd, struct error *err);

/* The child's main function for process_child. Only async-signal-safe calls; the result is its answer. */
typedef int (*process_child_fn)(void *arg);

/* Fork, run `fn` in the child, and return what it returned: a descriptor (>= 0, passed over and close-on-exec here)
 * when `wants_fd`, else 0; or its -errno. -ETIMEDOUT when the child was killed after deadline_ms. Blocks. */
int process_child(process_child_fn fn, void *arg, int wants_fd, int deadline_ms);

/* Wait for a child to end; kill it when deadline_ms pass first. Returns its wait status or -errno. */
int process_reap(pid_t pid, int deadline_ms, int cancel_fd, int *ret_status);

#endif
