/* SPDX-License-Identifier: Apache-2.0 */
/* Asking platterd, and waiting for the jobs that it starts: what all commands share. */
#ifndef PLATTER_CLI_REQUEST_H
#define PLATTER_CLI_REQUEST_H

#include "provisioner/cli/command.h"

/* The connection of this run, made on first use. */
int request_client(struct cli *cli, struct error *err);

/* GET a path; *ret_body is the caller's. */
int request_get(struct cli *cli, const char *path, json_t **ret_body, struct error *err);

/* GET every page of a list: PATH is "/v1/volumes" or "/v1/jobs?state=done", `member` the array's name in the answer. */
int request_list(struct cli *cli, const char *path, const char *member, json_t **ret_array, struct error *err);

/* "/v1/volumes/" NAME TAIL with the name escaped; the caller frees. NULL when out of memory. */
char *request_path(const char *collection, const char *name, const char *tail);

/*
 * Send a change. Waits for its end as the options say, with progress on standard error, and gives what it made or
 * changed (NULL for a deletion). With --no-wait, or when it is over only later, the job is printed or named instead:
 * *ret_object is then NULL and *ret_job_printed true. -ETIMEDOUT when --timeout passes first.
 */
int request_change(struct cli *cli, const char *method, const char *path, const json_t *body, json_t **ret_object,
                   bool *ret_job_printed, struct error *err);

/* Wait for a job that is known by its id; *ret_job is how it ended. A job that failed is that error. */
int request_wait_job(struct cli *cli, const char *id, json_t **ret_job, struct error *err);

#endif
