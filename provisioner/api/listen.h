/* SPDX-License-Identifier: Apache-2.0 */
/* platterd's listening socket: from systemd, or made here. */
#ifndef PLATTER_API_LISTEN_H
#define PLATTER_API_LISTEN_H

#include <stdbool.h>

#include "common/config.h"

/*
 * The socket that systemd passed, or a new one at config->socket with the configured group and mode, which it has
 * before anybody can connect. A socket that was left behind is replaced only if nobody listens on it. *ret_own: made
 * here, to be removed at the end. -EBUSY (code "already-running") when another platterd listens, -EEXIST when the path
 * is no socket.
 * Changes the umask for a moment: call it before threads are started.
 */
int listen_open(const struct config *config, int *ret_fd, bool *ret_own, struct error *err);

#endif
