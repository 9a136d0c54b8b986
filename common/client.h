/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client of platterd's API: HTTP and JSON over its Unix socket. The command uses it, and any adapter.
 *
 * One client is one connection, kept open between requests, and belongs to one thread at a time; threads that work at
 * once have a client each. Every call blocks until the answer is there or its deadline has passed.
 *
 * Errors. What platterd refuses comes back as the `struct error` that it sent (code, message, holder, hint) with an
 * errno that fits: ENOENT, EEXIST, EBUSY, ENOSPC, EINVAL, EACCES, EOPNOTSUPP, ETIMEDOUT, EIO. When it cannot be asked
 * at all the code is CLIENT_UNREACHABLE and the errno ECONNREFUSED.
 */
#ifndef PLATTER_COMMON_CLIENT_H
#define PLATTER_COMMON_CLIENT_H

#include <jansson.h>

#include "common/error.h"

#define CLIENT_SOCKET_DEFAULT "/run/platter/platter.sock"
#define CLIENT_UNREACHABLE "unreachable"
#define CLIENT_BODY_MAX (64 << 20)
#define CLIENT_LINE_MAX (1 << 20)

struct client;

/* Does not connect yet. `socket_path` is copied. -ENOMEM, -ENAMETOOLONG. */
int client_create(const char *socket_path, struct client **ret_client, struct error *err);
/* Closes the connection. NULL is allowed. Returns NULL. */
struct client *client_destroy(struct client *client);

struct client_reply {
    int status;   /* HTTP */
    json_t *body; /* the caller's reference; NULL when the answer had none */
};

static inline void client_reply_clear(struct client_reply *reply)
{
    json_decref(reply->body);
    reply->body = NULL;
}

#define CLEANUP_REPLY __attribute__((cleanup(client_reply_clear)))

/* Ask `method` of `path` ("/v1/volumes?limit=10", already escaped) with `body` (borrowed, may be NULL). Returns 0 for
 * every answer below 400; `ret_reply` is written then. timeout_ms < 0: no limit. */
int client_request(struct client *client, const char *method, const char *path, const json_t *body, int timeout_ms,
                   struct client_reply *ret_reply, struct error *err);

/* Read a stream of JSON lines. `on_line` gets each object (borrowed) and returns 0 to go on, positive to stop (the call
 * returns 0) or a negative errno (the call returns it). 0 at the end of the stream too. */
int client_stream(struct client *client, const char *path, int (*on_line)(json_t *line, void *context), void *context,
                  int timeout_ms, struct error *err);

/* Fill `err` from the "error" member of `answer` (an error answer, or a job that failed); `status` decides what the
 * code word does not. Returns -errno, never 0. */
int client_error(const json_t *answer, int status, struct error *err);

/* `text` with everything escaped that is not unreserved in a URL; the caller frees it. NULL when out of memory. */
char *client_escape(const char *text);

#endif
