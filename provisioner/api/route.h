/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The routes: the whole API as one table. docs/openapi.json describes the same, and a test compares the two.
 * Matching is by path segments; "{name}" stands for one segment, which is unescaped after matching, so an escaped
 * slash stays inside its segment.
 */
#ifndef PLATTER_API_ROUTE_H
#define PLATTER_API_ROUTE_H

#include "provisioner/api/request.h"

#define ROUTE_QUERY_MAX 4

struct route {
    const char *method; /* ends at NULL */
    const char *pattern;
    enum caller_role role;
    bool has_body;
    handler_fn handle;
    const char *query[ROUTE_QUERY_MAX + 1]; /* the parameters that it takes; mutations and jobs take "wait" */
};

extern const struct route routes[];

/* -ENOENT: no such path; -EOPNOTSUPP: the path has other methods. Parameters are the caller's to free. */
int route_find(const char *method, const char *path, const struct route **ret_route,
               char *ret_parameters[REQUEST_PARAMETERS_MAX], struct error *err);

/* `text` with %XX replaced; -EINVAL for broken escapes, control characters and what is not UTF-8. */
int route_unescape(const char *text, char **ret_text);

const char *route_role_name(enum caller_role role);

#endif
