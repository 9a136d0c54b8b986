// SPDX-License-Identifier: Apache-2.0
/* platter pool create|list|show|delete */
#include <errno.h>
#include <stdio.h>

#include "common/cleanup.h"
#include "provisioner/cli/confirm.h"
#include "provisioner/cli/nouns.h"
#include "provisioner/cli/output.h"
#include "provisioner/cli/request.h"

static const struct column pool_columns[] = {
    {"NAME", "name"},
    {"CAPACITY", "capacity", COLUMN_SIZE},
    {"USED", "used", COLUMN_SIZE},
    {"AVAILABLE", "available", COLUMN_SIZE},
    {"PROMISED", "promised", COLUMN_SIZE},
    {"VOLUMES", "volumes"},
    {"STATE", "state"},
    {"PATH", "path"},
    {NULL},
};

static const struct column pool_details[] = {
    {"Name", "name"},
    {"ID", "id"},
    {"Kind", "kind"},
    {"Path", "path"},
    {"Capacity", "capacity", COLUMN_SIZE},
    {"Used", "used", COLUMN_SIZE},
    {"Available", "available", COLUMN_SIZE},
    {"Promised", "promised", COLUMN_SIZE},
    {"Volumes", "volumes"},
    {"Overprovision", "overprovision"},
    {"State", "state"},
    {"Error", "error"},
    {"Created", "created", COLUMN_TIME},
    {NULL},
};

static int pool_create(struct cli *cli, struct error *err)
{
    json_t *pool = NULL;
    bool job_printed = false;
    if (json_object_set_new(cli->body, "kind", json_string("dir")) < 0)
        return error_set(err, ENOMEM, "out of memory");
    int r = request_change(cli, "POST", "/v1/pools", cli->body, &pool, &job_printed, err);
    if (r == 0 && pool)
        output_object(cli, pool, pool_details, "name");
    if (r == 0)
        json_decref(pool);
    return r;
}

static int pool_list(struct cli *cli, struct error *err)
{
    json_t *pools = NULL;
    int r = request_list(cli, "/v1/pools", "pools", &pools, err);
    if (r < 0)
        return r;
    output_list(cli, pools, pool_columns, "name");
    json_decref(pools);
    return 0;
}

static int pool_show(struct cli *cli, struct error *err)
{
    json_t *pool = NULL;
    CLEANUP_FREE char *path = request_path("/v1/pools/", cli->arguments[0], "");
    int r = path ? request_get(cli, path, &pool, err) : error_set(err, ENOMEM, "out of memory");
    if (r < 0)
        return r;
    output_object(cli, pool, pool_details, "name");
    json_decref(pool);
    return 0;
}

static int pool_delete(struct cli *cli, struct error *err)
{
    char what[512];
    (void)snprintf(what, sizeof(what), "Forget pool '%s'", cli->arguments[0]);
    int r = confirm(cli, what, cli->arguments[0], err);
    if (r < 0)
        return r;
    json_t *object = NULL;
    bool job_printed = false;
    CLEANUP_FREE char *path = request_path("/v1/pools/", cli->arguments[0], "");
    r = path ? request_change(cli, "DELETE", path, NULL, &object, &job_printed, err)
             : error_set(err, ENOMEM, "out of memory");
    if (r == 0)
        json_decref(object);
    return r;
}

static const struct value_spec create_options[] = {
    {"overprovision", VALUE_RATIO, "overprovision", "promise at most this many times the capacity", "RATIO"},
    {NULL},
};

static const struct value_spec delete_options[] = {
    {"yes", VALUE_FLAG, NULL, "do not ask (-y)"},
    {NULL},
};

const struct command pool_commands[] = {
    {"pool",
     "create",
     "Keep volumes as image files in a directory",
     {{"NAME", VALUE_TEXT, "name", "the pool's name"}, {"PATH", VALUE_FILE, "path", "an existing directory"}},
     create_options,
     pool_create},
    {"pool", "list", "List the pools", {{NULL}}, NULL, pool_list},
    {"pool", "show", "Show one pool", {{"POOL", VALUE_POOL, NULL, "the pool"}}, NULL, pool_show},
    {"pool",
     "delete",
     "Forget an empty pool; its directory stays",
     {{"POOL", VALUE_POOL, NULL, "the pool"}},
     delete_options,
     pool_delete},
    {NULL},
};
