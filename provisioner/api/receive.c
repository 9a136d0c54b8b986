// SPDX-License-Identifier: Apache-2.0
#include "provisioner/api/receive.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "provisioner/api/caller.h"
#include "provisioner/api/route.h"

#define DISCARD_MAX (16 << 20) /* of a body that is too large: read so far to be able to say so */

static int parse_wait(struct request *request, struct error *err)
{
    const char *text = request_query(request, "wait");
    char *end;
    if (!text)
        return 0;
    double seconds = strtod(text, &end);
    if (end == text || *end || !(seconds >= 0) || strchr(text, 'x'))
        return error_set(err, EINVAL, "'wait' must be a number of seconds");
    request->wait_ms = seconds * 1000 >= REQUEST_WAIT_MAX_MS ? REQUEST_WAIT_MAX_MS : (unsigned)(seconds * 1000);
    return 0;
}

struct query_reader {
    struct request *request;
    struct error *err;
    int result;
};

static enum MHD_Result on_query(void *user, enum MHD_ValueKind kind, const char *name, const char *value)
{
    struct query_reader *reader = user;
    const struct route *route = reader->request->route;
    (void)kind;
    bool known = false;
    for (size_t i = 0; i < ARRAY_SIZE(route->query) && route->query[i]; i++)
        known = known || strcmp(route->query[i], name) == 0;
    CLEANUP_FREE char *text = NULL;
    if (!known)
        reader->result = error_set(reader->err, EINVAL, "unknown parameter '%s'", name);
    else if (!value || route_unescape(value, &text) < 0)
        reader->result = error_set(reader->err, EINVAL, "parameter '%s' has no usable value", name);
    else if (json_object_set_new(reader->request->query, name, json_string(text)) < 0)
        reader->result = error_set(reader->err, ENOMEM, "out of memory");
    return reader->result < 0 ? MHD_NO : MHD_YES;
}

static int identify(struct request *request, const struct config *config, struct error *err)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(request->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    if (!info)
        return error_set(err, EACCES, "who is asking cannot be told");
    return caller_identify(info->connect_fd, config, &request->caller, err);
}

int receive_headers(struct request *request, const struct config *config, const char *method, const char *path,
                    struct error *err)
{
    const struct route *route = NULL;
    int r = identify(request, config, err);
    if (r == 0)
        r = route_find(method, path, &route, request->parameters, err);
    if (r < 0 || !route)
        return r < 0 ? r : -ENOENT;
    request->route = route;
    if (request->caller.role < route->role) {
        (void)error_set(err, EACCES, "%s %s needs the role %s; yours is %s", method, route->pattern,
                        route_role_name(route->role), route_role_name(request->caller.role));
        return error_code(err, "forbidden");
    }
    struct query_reader reader = {.request = request, .err = err};
    request->query = json_object();
    (void)MHD_get_connection_values(request->connection, MHD_GET_ARGUMENT_KIND, on_query, &reader);
    return reader.result < 0 ? reader.result : parse_wait(request, err);
}

enum MHD_Result receive_body(struct request *request, const char *data, size_t length)
{
    request->too_large = request->too_large || length > REQUEST_BODY_MAX - request->data_length;
    if (request->too_large) {
        request->data_length = MIN(request->data_length, (size_t)REQUEST_BODY_MAX);
        request->data_capacity += length; /* counts what is thrown away: the buffer is not used any more */
        return request->data_capacity > DISCARD_MAX ? MHD_NO : MHD_YES;
    }
    size_t need = request->data_length + length;
    if (need > request->data_capacity) {
        size_t capacity = MAX(need, request->data_capacity * 2);
        char *grown = realloc(request->data, capacity);
        if (!grown)
            return MHD_NO;
        request->data = grown;
        request->data_capacity = capacity;
    }
    memcpy(request->data + request->data_length, data, length);
    request->data_length = need;
    return MHD_YES;
}

int receive_end(struct request *request, struct error *err)
{
    json_error_t why;
    if (request->too_large) {
        (void)error_set(err, EMSGSIZE, "the body is larger than %d bytes", REQUEST_BODY_MAX);
        return error_code(err, "too-large");
    }
    if (!request->route->has_body)
        return request->data_length ? error_set(err, EINVAL, "this request takes no body") : 0;
    request->body = json_loadb(request->data ? request->data : "", request->data_length, JSON_REJECT_DUPLICATES, &why);
    if (!request->body)
        return error_set(err, EINVAL, "the body is no JSON: %s at byte %d", why.text, why.position);
    return json_is_object(request->body) ? 0 : error_set(err, EINVAL, "the body must be a JSON object");
}
