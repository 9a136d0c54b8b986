/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages between platterd and its servers: one JSON object a line over a Unix stream socket, with descriptors
 * alongside (SCM_RIGHTS on the line's first byte). Both sides are ours but either may be newer or broken: lines are
 * bounded, descriptors counted, and what was not expected is closed.
 */
#ifndef PLATTER_COMMON_MESSAGE_H
#define PLATTER_COMMON_MESSAGE_H

#include <jansson.h>
#include <stddef.h>

#include "common/error.h"

#define MESSAGE_LINE_MAX 65536
#define MESSAGE_FDS_MAX 250 /* Linux takes 253 */

struct message_socket; /* a connected socket with its unread bytes */

/* Takes `fd` over on success. */
int message_socket_create(int fd, struct message_socket **ret_socket);
/* Closes the descriptor and every received descriptor not yet taken. NULL is allowed. Returns NULL. */
struct message_socket *message_socket_destroy(struct message_socket *socket);
int message_socket_fd(const struct message_socket *socket);

/* Send one object with `count` descriptors (still the caller's). Blocks at most timeout_ms (-1 = no limit).
 * -EPIPE when the peer is gone, -ETIMEDOUT. One sender at a time. */
int message_send(struct message_socket *socket, const json_t *object, const int *fds, size_t count, int timeout_ms,
                 struct error *err);

/* Receive one object (the caller's reference) and its descriptors, at most `max` (more is an error and all are closed),
 * close-on-exec. Blocks at most timeout_ms. -EPIPE at end of stream, -ETIMEDOUT, -EBADMSG for anything that is no
 * JSON object on a line within the bounds. */
int message_receive(struct message_socket *socket, json_t **ret_object, int *ret_fds, size_t max, size_t *ret_count,
                    int timeout_ms, struct error *err);

/* The "error" member of an answer, from `err`; and back: 0 when `answer` has "ok": true. */
json_t *message_error(const struct error *err);
int message_result(const json_t *answer, struct error *err);

#endif
