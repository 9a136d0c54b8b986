// SPDX-License-Identifier: Apache-2.0
/* platter volume check */
#include <errno.h>

#include "common/cleanup.h"
#include "provisioner/cli/check.h"
#include "provisioner/cli/output.h"
#include "provisioner/cli/request.h"

static const struct column columns[] = {
    {"LAYER", "id"},
    {"FORMAT", "format"},
    {"CLUSTERS", "clusters"},
    {"ALLOCATED", "allocated"},
    {"LEAKS", "leaks"},
    {"LOW-COUNTS", "low_counts"},
    {"COPIED-FLAGS", "copied_flags"},
    {"BAD-ENTRIES", "bad_entries"},
    {"DOUBLE-USE", "double_use"},
    {"REPAIRED", "repaired"},
    {"ERRORS", "errors"},
    {NULL},
};

static void print(const struct cli *cli, const json_t *result)
{
    if (cli->output == OUTPUT_TABLE)
        output_list(cli, json_object_get(result, "layers"), columns, "id");
    else
        output_object(cli, result, columns, "volume");
}

int volume_check(struct cli *cli, struct error *err)
{
    CLEANUP_FREE char *path = request_path("/v1/volumes/", cli->arguments[0], "/check");
    json_t *result = NULL;
    bool job_printed = false;
    if (!path)
        return error_set(err, ENOMEM, "out of memory");
    int r = request_change(cli, "POST", path, cli->body, &result, &job_printed, err);
    if (r < 0 || !result)
        return r;
    json_int_t errors = json_integer_value(json_object_get(result, "errors"));
    print(cli, result);
    json_decref(result);
    if (errors == 0)
        return 0;
    (void)error_set(err, EIO, "volume '%s' has %lld errors%s", cli->arguments[0], (long long)errors,
                    cli_flag(cli, "repair") ? " that could not be repaired" : "");
    if (!cli_flag(cli, "repair"))
        (void)error_hint(err, "platter volume check %s --repair", cli->arguments[0]);
    return error_code(err, "corrupt-image");
}
