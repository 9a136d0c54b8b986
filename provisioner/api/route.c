// SPDX-License-Identifier: Apache-2.0
#include "provisioner/api/route.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "provisioner/api/handlers.h"

#define ROUTE_SEGMENT_MAX 12288 /* of a parameter with every byte escaped */

const struct route routes[] = {
    {"GET", "/healthz", CALLER_VIEWER, false, handle_health_get, {NULL}},
    {"GET", "/metrics", CALLER_VIEWER, false, handle_metrics_get, {NULL}},
    {"GET", "/v1", CALLER_VIEWER, false, handle_version_get, {NULL}},
    {"GET", "/v1/pools", CALLER_VIEWER, false, handle_pool_list, {NULL}},
    {"POST", "/v1/pools", CALLER_ADMIN, true, handle_pool_create, {"wait"}},
    {"GET", "/v1/pools/{pool}", CALLER_VIEWER, false, handle_pool_get, {NULL}},
    {"DELETE", "/v1/pools/{pool}", CALLER_ADMIN, false, handle_pool_delete, {"wait"}},
    {"GET", "/v1/volumes", CALLER_VIEWER, false, handle_volume_list, {"pool", "limit", "after"}},
    {"POST", "/v1/volumes", CALLER_OPERATOR, true, handle_volume_create, {"wait"}},
    {"POST", "/v1/volumes/import", CALLER_OPERATOR, true, handle_volume_import, {"wait"}},
    {"GET", "/v1/volumes/{volume}", CALLER_VIEWER, false, handle_volume_get, {NULL}},
    {"DELETE", "/v1/volumes/{volume}", CALLER_OPERATOR, false, handle_volume_delete, {"wait", "snapshots"}},
    {"POST", "/v1/volumes/{volume}/resize", CALLER_OPERATOR, true, handle_volume_resize, {"wait"}},
    {"POST", "/v1/volumes/{volume}/export", CALLER_OPERATOR, true, handle_volume_export, {"wait"}},
    {"POST", "/v1/volumes/{volume}/check", CALLER_OPERATOR, true, handle_volume_check, {"wait"}},
    {"POST", "/v1/volumes/{volume}/compact", CALLER_OPERATOR, false, handle_volume_compact, {"wait"}},
    {"POST", "/v1/volumes/{volume}/restore", CALLER_OPERATOR, true, handle_volume_restore, {"wait"}},
    {"POST", "/v1/volumes/clone", CALLER_OPERATOR, true, handle_volume_clone, {"wait"}},
    {"GET", "/v1/snapshots", CALLER_VIEWER, false, handle_snapshot_list, {"volume", "limit", "after"}},
    {"POST", "/v1/snapshots", CALLER_OPERATOR, true, handle_snapshot_create, {"wait"}},
    {"POST", "/v1/snapshots/group", CALLER_OPERATOR, true, handle_snapshot_group_create, {"wait"}},
    {"GET", "/v1/snapshots/{snapshot}", CALLER_VIEWER, false, handle_snapshot_get, {NULL}},
    {"DELETE", "/v1/snapshots/{snapshot}", CALLER_OPERATOR, false, handle_snapshot_delete, {"wait"}},
    {"GET", "/v1/snapshots/{snapshot}/allocated", CALLER_VIEWER, false, handle_snapshot_allocated, {"offset", "limit"}},
    {"GET",
     "/v1/snapshots/{snapshot}/changed",
     CALLER_VIEWER,
     false,
     handle_snapshot_changed,
     {"since", "offset", "limit"}},
    {"GET", "/v1/attachments", CALLER_VIEWER, false, handle_attachment_list, {"volume"}},
    {"POST", "/v1/attachments", CALLER_OPERATOR, true, handle_attachment_create, {"wait"}},
    {"GET", "/v1/attachments/{attachment}", CALLER_VIEWER, false, handle_attachment_get, {NULL}},
    {"DELETE", "/v1/attachments/{attachment}", CALLER_OPERATOR, false, handle_attachment_delete, {"wait"}},
    {"GET", "/v1/jobs", CALLER_VIEWER, false, handle_job_list, {"state"}},
    {"GET", "/v1/jobs/{job}", CALLER_VIEWER, false, handle_job_get, {"wait"}},
    {"POST", "/v1/jobs/{job}/cancel", CALLER_OPERATOR, false, handle_job_cancel, {NULL}},
    {"GET", "/v1/events", CALLER_VIEWER, false, handle_event_list, {"after", "follow"}},
    {"GET", "/v1/orphans", CALLER_VIEWER, false, handle_orphan_list, {NULL}},
    {NULL, NULL, CALLER_ADMIN, false, NULL, {NULL}},
};

const char *route_role_name(enum caller_role role)
{
    static const char *const names[] = {"viewer", "operator", "admin"};
    return names[role];
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int unescape(const char *text, size_t length, char **ret_text)
{
    char *out = malloc(length + 1);
    size_t used = 0;
    if (!out)
        return -ENOMEM;
    for (size_t i = 0; i < length; i++) {
        int c = (unsigned char)text[i];
        if (c == '%') {
            int high = i + 2 < length ? hex_digit(text[i + 1]) : -1;
            int low = high >= 0 ? hex_digit(text[i + 2]) : -1;
            c = low >= 0 ? high << 4 | low : -1;
            i += 2;
        }
        if (c < ' ' || c == 0x7f) {
            free(out);
            return -EINVAL;
        }
        out[used++] = (char)c;
    }
    out[used] = '\0';
    json_t *utf8 = json_string(out); /* jansson refuses what is not UTF-8 */
    if (!utf8) {
        free(out);
        return -EINVAL;
    }
    json_decref(utf8);
    *ret_text = out;
    return 0;
}

int route_unescape(const char *text, char **ret_text)
{
    return unescape(text, strlen(text), ret_text);
}

/* Where the path's segments stand for the pattern's parameters; their number, or -1 if the path does not match. */
static int match(const char *pattern, const char *path, const char *starts[], size_t lengths[])
{
    int count = 0;
    while (*pattern && *path) {
        if (*pattern == '{') {
            size_t length = strcspn(path, "/");
            if (!length || count == REQUEST_PARAMETERS_MAX || length >= ROUTE_SEGMENT_MAX)
                return -1;
            starts[count] = path;
            lengths[count++] = length;
            path += length;
            pattern += strcspn(pattern, "}") + 1;
        } else if (*pattern++ != *path++) {
            return -1;
        }
    }
    return *pattern || *path ? -1 : count;
}

int route_find(const char *method, const char *path, const struct route **ret_route,
               char *ret_parameters[REQUEST_PARAMETERS_MAX], struct error *err)
{
    const char *starts[REQUEST_PARAMETERS_MAX];
    size_t lengths[REQUEST_PARAMETERS_MAX];
    bool path_known = false;
    for (const struct route *route = routes; route->method; route++) {
        int count = match(route->pattern, path, starts, lengths);
        if (count < 0)
            continue;
        path_known = true;
        if (strcmp(route->method, method) != 0)
            continue;
        for (int i = 0; i < count; i++) {
            int r = unescape(starts[i], lengths[i], &ret_parameters[i]);
            if (r < 0)
                return error_set(err, r, "the path holds a broken escape or character");
        }
        *ret_route = route;
        return 0;
    }
    if (!path_known)
        return error_set(err, ENOENT, "there is no '%s' in this API", path);
    return error_set(err, EOPNOTSUPP, "'%s' does not take %s", path, method);
}
