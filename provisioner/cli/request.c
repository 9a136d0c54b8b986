// SPDX-License-Identifier: Apache-2.0
/*
 * Changes are jobs. The server is asked to hold its answer (?wait=) for as long as this side is willing to wait; when a
 * bar is wanted it is asked in short steps instead, and the job is shown between them.
 */
#include "provisioner/cli/request.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "provisioner/cli/output.h"
#include "provisioner/cli/progress.h"

#define ANSWER_TIMEOUT_MS 30000
#define STEP_SHOWN_MS 400
#define STEP_MS 20000

int request_client(struct cli *cli, struct error *err)
{
    return cli->client ? 0 : client_create(cli->socket, &cli->client, err);
}

int request_get(struct cli *cli, const char *path, json_t **ret_body, struct error *err)
{
    struct client_reply reply = {0};
    int r = request_client(cli, err);
    if (r == 0)
        r = client_request(cli->client, "GET", path, NULL, ANSWER_TIMEOUT_MS, &reply, err);
    if (r < 0)
        return r;
    if (!json_is_object(reply.body)) {
        client_reply_clear(&reply);
        return error_set(err, EBADMSG, "the answer of platterd is no object");
    }
    *ret_body = reply.body;
    return 0;
}

char *request_path(const char *collection, const char *name, const char *tail)
{
    CLEANUP_FREE char *escaped = client_escape(name);
    char *path = NULL;
    if (!escaped || asprintf(&path, "%s%s%s", collection, escaped, tail) < 0)
        return NULL;
    return path;
}

int request_list(struct cli *cli, const char *path, const char *member, json_t **ret_array, struct error *err)
{
    json_t *all = json_array();
    CLEANUP_FREE char *page = strdup(path);
    int r = all && page ? 0 : error_set(err, ENOMEM, "out of memory");
    while (r == 0 && page) {
        json_t *body;
        r = request_get(cli, page, &body, err);
        if (r < 0)
            break;
        if (json_array_extend(all, json_object_get(body, member)) < 0)
            r = error_set(err, EBADMSG, "the answer of platterd has no list '%s'", member);
        const char *next = json_string_value(json_object_get(body, "next"));
        CLEANUP_FREE char *escaped = next ? client_escape(next) : NULL;
        free(page);
        page = NULL;
        if (r == 0 && escaped && asprintf(&page, "%s%cafter=%s", path, strchr(path, '?') ? '&' : '?', escaped) < 0) {
            page = NULL;
            r = error_set(err, ENOMEM, "out of memory");
        }
        json_decref(body);
    }
    if (r < 0) {
        json_decref(all);
        return r;
    }
    *ret_array = all;
    return 0;
}

/* ---- jobs ---- */

static const char *job_member(const json_t *job, const char *name)
{
    const char *text = json_string_value(json_object_get(job, name));
    return text ? text : "";
}

static bool job_ended(const json_t *job)
{
    const char *state = job_member(job, "state");
    return strcmp(state, "succeeded") == 0 || strcmp(state, "failed") == 0 || strcmp(state, "cancelled") == 0;
}

static int job_outcome(const json_t *job, struct error *err)
{
    const char *state = job_member(job, "state");
    if (strcmp(state, "succeeded") == 0)
        return 0;
    if (json_is_object(json_object_get(job, "error")))
        return client_error(job, 500, err);
    bool cancelled = strcmp(state, "cancelled") == 0;
    return error_set(err, cancelled ? ECANCELED : EIO, "job %s %s", job_member(job, "id"),
                     cancelled ? "was cancelled" : "failed");
}

/* What is left of the user's patience: at most `most`, never negative. */
static int remaining_ms(const struct cli *cli, int64_t start_ns, int most)
{
    if (cli->timeout_ms < 0)
        return most;
    int64_t left = cli->timeout_ms - (monotonic_ns() - start_ns) / 1000000;
    return (int)MAX(MIN(left, (int64_t)most), 0);
}

static int still_running(const json_t *job, struct error *err)
{
    (void)error_set(err, ETIMEDOUT, "job %s is still %s", job_member(job, "id"), job_member(job, "state"));
    return error_hint(err, "platter job wait %s", job_member(job, "id"));
}

/* Follows `*job` (replaced as it goes on) until it has ended. */
static int follow_job(struct cli *cli, json_t **job, int64_t start_ns, struct error *err)
{
    struct progress progress;
    progress_start(&progress, cli->progress);
    CLEANUP_FREE char *path = request_path("/v1/jobs/", job_member(*job, "id"), "");
    int r = path ? 0 : error_set(err, ENOMEM, "out of memory");
    while (r == 0 && !job_ended(*job)) {
        progress_show(&progress, *job);
        int step = remaining_ms(cli, start_ns, progress_wanted(&progress) ? STEP_SHOWN_MS : STEP_MS);
        if (step == 0) {
            r = still_running(*job, err);
            break;
        }
        char wait[PATH_MAX];
        (void)snprintf(wait, sizeof(wait), "%s?wait=%d.%03d", path, step / 1000, step % 1000);
        json_t *next;
        r = request_get(cli, wait, &next, err);
        if (r < 0)
            break;
        json_decref(*job);
        *job = next;
    }
    progress_end(&progress);
    return r;
}

int request_wait_job(struct cli *cli, const char *id, json_t **ret_job, struct error *err)
{
    CLEANUP_FREE char *path = request_path("/v1/jobs/", id, "");
    json_t *job = NULL;
    if (!path)
        return error_set(err, ENOMEM, "out of memory");
    int64_t start_ns = monotonic_ns();
    int r = request_get(cli, path, &job, err);
    if (r < 0)
        return r;
    r = follow_job(cli, &job, start_ns, err);
    if (r == 0)
        r = job_outcome(job, err);
    if (r < 0) {
        json_decref(job);
        return r;
    }
    *ret_job = job;
    return 0;
}

/* ---- changes ---- */

static void print_job(const struct cli *cli, const json_t *job)
{
    static const struct column columns[] = {{"Job", "id"}, {"Kind", "kind"}, {"State", "state"}, {NULL}};
    output_object(cli, job, columns, "id");
}

/* The object that a job made: what it reports as its result, NULL for none. */
static json_t *job_result(const json_t *job)
{
    json_t *result = json_object_get(job, "result");
    return json_is_object(result) && json_object_size(result) ? json_incref(result) : NULL;
}

int request_change(struct cli *cli, const char *method, const char *path, const json_t *body, json_t **ret_object,
                   bool *ret_job_printed, struct error *err)
{
    struct client_reply reply = {0};
    struct progress progress;
    int r = request_client(cli, err);
    if (r < 0)
        return r;
    progress_start(&progress, cli->progress);
    int64_t start_ns = monotonic_ns();
    int step = cli->wait ? remaining_ms(cli, start_ns, progress_wanted(&progress) ? STEP_SHOWN_MS : STEP_MS) : 0;
    char wait[64] = "";
    if (step > 0)
        (void)snprintf(wait, sizeof(wait), "%cwait=%d.%03d", strchr(path, '?') ? '&' : '?', step / 1000, step % 1000);
    CLEANUP_FREE char *target = NULL;
    if (asprintf(&target, "%s%s", path, wait) < 0) {
        target = NULL;
        return error_set(err, ENOMEM, "out of memory");
    }
    r = client_request(cli->client, method, target, body, step + ANSWER_TIMEOUT_MS, &reply, err);
    if (r < 0)
        return r;

    *ret_object = NULL;
    *ret_job_printed = reply.status == 202 && !cli->wait;
    if (*ret_job_printed) {
        print_job(cli, reply.body);
    } else if (reply.status == 202) {
        r = follow_job(cli, &reply.body, start_ns, err);
        if (r == 0)
            r = job_outcome(reply.body, err);
        if (r == 0)
            *ret_object = job_result(reply.body);
    } else if (json_is_object(reply.body) && json_object_size(reply.body)) {
        *ret_object = json_incref(reply.body);
    }
    client_reply_clear(&reply);
    return r;
}
