/* SPDX-License-Identifier: Apache-2.0 */
/*
 * platter-blk as a worker: one command on image files, progress as it goes, the answer, the end
 * (docs/architecture.md). When the peer closes the socket the process ends at once: that is how a command is
 * cancelled, and why none outlives the platterd that wanted it.
 */
#ifndef PLATTER_PROVISIONER_BLK_WORKER_H
#define PLATTER_PROVISIONER_BLK_WORKER_H

/* Do the one command that arrives on the connected `socket_fd` (taken over). Returns the exit status: 0 when an
 * answer was sent, be it an error. */
int worker_run(int socket_fd);

#endif
