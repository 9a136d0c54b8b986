// SPDX-License-Identifier: Apache-2.0
/* platter job list|show|wait|cancel */
#include <errno.h>
#include <string.h>

#include "common/cleanup.h"
#include "provisioner/cli/nouns.h"
#include "provisioner/cli/output.h"
#include "provisioner/cli/request.h"

static const struct column job_columns[] = {
    {"ID", "id"},
    {"KIND", "kind"},
    {"VOLUME", "volume"},
    {"STATE", "state"},
    {"PROGRESS", "progress", COLUMN_PROGRESS},
    {"ERROR", "error.message"},
    {NULL},
};

static const struct column job_details[] = {
    {"ID", "id"},
    {"Kind", "kind"},
    {"Volume", "volume"},
    {"State", "state"},
    {"Step", "step"},
    {"Progress", "progress", COLUMN_PROGRESS},
    {"Error", "error.message"},
    {"Held by", "error.holder"},
    {"Try", "error.hint"},
    {"Created", "created", COLUMN_TIME},
    {"Ended", "ended", COLUMN_TIME},
    {NULL},
};

static int job_list(struct cli *cli, struct error *err)
{
    const char *state = cli_option(cli, "state");
    CLEANUP_FREE char *path = state ? request_path("/v1/jobs?state=", state, "") : strdup("/v1/jobs");
    json_t *jobs = NULL;
    int r = path ? request_list(cli, path, "jobs", &jobs, err) : error_set(err, ENOMEM, "out of memory");
    if (r < 0)
        return r;
    output_list(cli, jobs, job_columns, "id");
    json_decref(jobs);
    return 0;
}

static int job_show(struct cli *cli, struct error *err)
{
    CLEANUP_FREE char *path = request_path("/v1/jobs/", cli->arguments[0], "");
    json_t *job = NULL;
    int r = path ? request_get(cli, path, &job, err) : error_set(err, ENOMEM, "out of memory");
    if (r < 0)
        return r;
    output_object(cli, job, job_details, "id");
    json_decref(job);
    return 0;
}

static int job_wait(struct cli *cli, struct error *err)
{
    json_t *job = NULL;
    int r = request_wait_job(cli, cli->arguments[0], &job, err);
    if (r < 0)
        return r;
    output_object(cli, job, job_details, "id");
    json_decref(job);
    return 0;
}

static int job_cancel(struct cli *cli, struct error *err)
{
    CLEANUP_FREE char *path = request_path("/v1/jobs/", cli->arguments[0], "/cancel");
    struct client_reply reply = {0};
    int r = path ? request_client(cli, err) : error_set(err, ENOMEM, "out of memory");
    if (r == 0)
        r = client_request(cli->client, "POST", path, NULL, -1, &reply, err);
    if (r < 0)
        return r;
    if (json_is_object(reply.body))
        output_object(cli, reply.body, job_details, "id");
    client_reply_clear(&reply);
    return 0;
}

static const struct value_spec list_options[] = {
    {"state", VALUE_CHOICE, NULL, "only jobs in this state", "active|queued|running|succeeded|failed|cancelled"},
    {NULL},
};

#define JOB_ARGUMENT                                                                                                   \
    {                                                                                                                  \
        "JOB", VALUE_JOB, NULL, "the job's id"                                                                         \
    }

const struct command job_commands[] = {
    {"job", "list", "List the jobs", {{NULL}}, list_options, job_list},
    {"job", "show", "Show one job", {JOB_ARGUMENT}, NULL, job_show},
    {"job", "wait", "Wait until a job has ended", {JOB_ARGUMENT}, NULL, job_wait},
    {"job", "cancel", "Ask a job to stop and to undo what it did", {JOB_ARGUMENT}, NULL, job_cancel},
    {NULL},
};
