// SPDX-License-Identifier: Apache-2.0
#include <errno.h>

#include "provisioner/api/handlers.h"

#define LIMIT_MAX 1000

static int answer_changed(struct request *request, const char *since, struct error *err)
{
    struct changed_query query = {.since = since};
    json_t *changed = NULL;
    uint64_t limit = 0;
    int r = request_query_number(request, "offset", INT64_MAX, 0, &query.offset, err);
    if (r == 0)
        r = request_query_number(request, "limit", LIMIT_MAX, LIMIT_MAX, &limit, err);
    if (r == 0 && limit == 0)
        r = error_set(err, EINVAL, "'limit' must be at least 1");
    query.limit = (unsigned)limit;
    if (r == 0)
        r = manager_snapshot_changed(request->manager, request->parameters[0], &query, &changed, err);
    return r < 0 ? r : request_answer(request, MHD_HTTP_OK, changed, err);
}

int handle_snapshot_allocated(struct request *request, struct error *err)
{
    return answer_changed(request, NULL, err);
}

int handle_snapshot_changed(struct request *request, struct error *err)
{
    const char *since = request_query(request, "since");
    if (!since || !since[0])
        return error_set(err, EINVAL, "'since' must name a snapshot");
    return answer_changed(request, since, err);
}
