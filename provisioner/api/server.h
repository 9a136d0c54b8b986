/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The HTTP server on platterd's socket.
 *
 * Threads: a few threads of libmicrohttpd serve the connections; none waits for a job or a follower. A request that
 * has to wait is suspended and woken by the manager's callback.
 */
#ifndef PLATTER_API_SERVER_H
#define PLATTER_API_SERVER_H

#include <stdatomic.h>

#include "common/config.h"
#include "provisioner/api/request.h"

/* Serve `listen_fd` (taken over on success) for `manager` (borrowed until server_stop returned). */
int server_start(int listen_fd, const struct config *config, struct manager *manager, struct server **ret_server,
                 struct error *err);

/* Take no more connections, answer the waiting requests with their jobs as they stand, end the streams, give what is
 * being sent two seconds, close. The server lives on for callbacks that the manager still owes. NULL is allowed. */
void server_stop(struct server *server);

/* Free a stopped server, after manager_stop. Returns NULL. */
struct server *server_free(struct server *server);

/* Every few seconds: wakes streams so that dead readers are noticed. */
void server_tick(struct server *server);

/* For handlers. Streams register to be woken on stop and tick. */
bool server_stopping(const struct server *server);
struct stream_hook {
    void (*wake)(struct stream_hook *hook);
    struct stream_hook *previous, *next;
};
void server_add_stream(struct server *server, struct stream_hook *hook);
void server_remove_stream(struct server *server, struct stream_hook *hook);

#endif
