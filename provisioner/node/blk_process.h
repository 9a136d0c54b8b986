/* SPDX-License-Identifier: Apache-2.0 */
/* Starting, awaiting and ending platter-blk processes. For blk_client.c and blk_worker.c only. */
#ifndef PLATTER_PROVISIONER_NODE_BLK_PROCESS_H
#define PLATTER_PROVISIONER_NODE_BLK_PROCESS_H

#include <sys/types.h>

#include "common/error.h"

/* Start `binary` (NULL = platter-blk beside the running executable) in `mode` with `socket_fd`, still the caller's, as
 * its descriptor 3 and no other but the standard ones, in a session of its own. */
int blk_process_start(const char *binary, const char *mode, int socket_fd, pid_t *ret_pid, int *ret_pidfd,
                      struct error *err);

/* Wait until the process behind `pidfd` has ended, and reap it if it is our child: 0 or -ETIMEDOUT. `ret_how` gets
 * a word on how it ended, "" when that is not known because the process is not our child. */
int blk_process_wait(int pidfd, int timeout_ms, char ret_how[static 48]);

/* SIGKILL and wait: 0 or -ETIMEDOUT (a process can hang in the kernel behind a dead disk). */
int blk_process_kill(int pidfd);

#endif
