// SPDX-License-Identifier: Apache-2.0
/* Jobs: how far they are, waiting for their end, asking them to stop. */
#include <errno.h>
#include <string.h>

#include "provisioner/api/handlers.h"

int handle_job_list(struct request *request, struct error *err)
{
    json_t *jobs = NULL;
    int r = manager_job_list(request->manager, request_query(request, "state"), &jobs, err);
    return r < 0 ? r : request_answer(request, MHD_HTTP_OK, json_pack("{s:o}", "jobs", jobs), err);
}

/* A job with what it made, when it ended well. A later change may have removed that object: then there is no result. */
static int job_with_result(struct manager *manager, const char *id, json_t **ret_job, struct error *err)
{
    json_t *job = NULL, *result = NULL;
    int r = manager_job_get(manager, id, &job, err);
    if (r < 0)
        return r;
    const char *state = json_string_value(json_object_get(job, "state"));
    if (state && strcmp(state, "succeeded") == 0 && manager_job_result(manager, id, &result, NULL) == 0)
        (void)json_object_set_new(job, "result", result);
    *ret_job = job;
    return 0;
}

int handle_job_get(struct request *request, struct error *err)
{
    json_t *job = NULL;
    const char *id = request->parameters[0];
    int r = job_with_result(request->manager, id, &job, err);
    if (r < 0)
        return r;
    if (!json_object_get(job, "ended") && request->wait_ms) {
        json_decref(job);
        return request_wait_job(request, id, job_with_result);
    }
    return request_answer(request, MHD_HTTP_OK, job, err);
}

int handle_job_cancel(struct request *request, struct error *err)
{
    json_t *job = NULL;
    const char *id = request->parameters[0];
    int r = manager_job_cancel(request->manager, &request->caller, id, err);
    if (r == 0)
        r = manager_job_get(request->manager, id, &job, err);
    return r < 0 ? r : request_answer(request, MHD_HTTP_ACCEPTED, job, err);
}
