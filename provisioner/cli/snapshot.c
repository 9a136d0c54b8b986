// SPDX-License-Identifier: Apache-2.0
/* platter snapshot create|list|show|changed|delete, and what is made of snapshots: volume clone|restore */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/cleanup.h"
#include "provisioner/cli/changed.h"
#include "provisioner/cli/confirm.h"
#include "provisioner/cli/nouns.h"
#include "provisioner/cli/output.h"
#include "provisioner/cli/request.h"
#include "provisioner/cli/snapshot.h"

#define CREATE_ARGUMENT "VOLUME@SNAPSHOT"

static const struct column snapshot_columns[] = {
    {"NAME", "name"},
    {"SIZE", "size", COLUMN_SIZE},
    {"USED", "used", COLUMN_SIZE},
    {"CONSISTENCY", "consistency"},
    {"STATE", "state"},
    {"CREATED", "created", COLUMN_TIME},
    {"GROUP", "group"},
    {NULL},
};

static const struct column group_columns[] = {
    {"NAME", "name"},
    {"GROUP", "group"},
    {"SIZE", "size", COLUMN_SIZE},
    {"CONSISTENCY", "consistency"},
    {"STATE", "state"},
    {NULL},
};

static const struct column snapshot_details[] = {
    {"Name", "name"},
    {"ID", "id"},
    {"Volume", "volume"},
    {"State", "state"},
    {"Size", "size", COLUMN_SIZE},
    {"Used", "used", COLUMN_SIZE},
    {"Consistency", "consistency"},
    {"File system", "filesystem"},
    {"Pause (us)", "pause_us"},
    {"Group", "group"},
    {"Created", "created", COLUMN_TIME},
    {NULL},
};

static int print_change(struct cli *cli, const char *method, const char *path, const json_t *body,
                        const struct column *details, struct error *err)
{
    json_t *object = NULL;
    bool job_printed = false;
    int r = request_change(cli, method, path, body, &object, &job_printed, err);
    if (r < 0)
        return r;
    if (object && details)
        output_object(cli, object, details, "name");
    json_decref(object);
    return 0;
}

static int group_create(struct cli *cli, json_t *names, struct error *err)
{
    json_t *group = NULL;
    bool job_printed = false;
    json_t *body = json_pack("{s:O, s:b}", "names", names, "freeze", cli_flag(cli, "freeze"));
    int r = body ? request_change(cli, "POST", "/v1/snapshots/group", body, &group, &job_printed, err)
                 : error_set(err, ENOMEM, "out of memory");
    json_decref(body);
    if (r < 0)
        return r;
    if (group)
        output_list(cli, json_object_get(group, "snapshots"), group_columns, "name");
    json_decref(group);
    return 0;
}

static int snapshot_create(struct cli *cli, struct error *err)
{
    json_t *names = json_object_get(cli->options, CREATE_ARGUMENT);
    if (json_array_size(names) > 1)
        return group_create(cli, names, err);
    return print_change(cli, "POST", "/v1/snapshots", cli->body, snapshot_details, err);
}

static int snapshot_list(struct cli *cli, struct error *err)
{
    const char *volume = cli->arguments[0];
    CLEANUP_FREE char *path = volume ? request_path("/v1/snapshots?volume=", volume, "") : strdup("/v1/snapshots");
    json_t *snapshots = NULL;
    int r = path ? request_list(cli, path, "snapshots", &snapshots, err) : error_set(err, ENOMEM, "out of memory");
    if (r < 0)
        return r;
    output_list(cli, snapshots, snapshot_columns, "name");
    json_decref(snapshots);
    return 0;
}

static int snapshot_show(struct cli *cli, struct error *err)
{
    json_t *snapshot = NULL;
    CLEANUP_FREE char *path = request_path("/v1/snapshots/", cli->arguments[0], "");
    int r = path ? request_get(cli, path, &snapshot, err) : error_set(err, ENOMEM, "out of memory");
    if (r < 0)
        return r;
    output_object(cli, snapshot, snapshot_details, "name");
    json_decref(snapshot);
    return 0;
}

static int snapshot_delete(struct cli *cli, struct error *err)
{
    char what[512];
    (void)snprintf(what, sizeof(what), "Delete snapshot '%s'", cli->arguments[0]);
    int r = confirm(cli, what, cli->arguments[0], err);
    if (r < 0)
        return r;
    CLEANUP_FREE char *path = request_path("/v1/snapshots/", cli->arguments[0], "");
    return path ? print_change(cli, "DELETE", path, NULL, NULL, err) : error_set(err, ENOMEM, "out of memory");
}

int snapshot_clone(struct cli *cli, struct error *err)
{
    return print_change(cli, "POST", "/v1/volumes/clone", cli->body, volume_details, err);
}

int snapshot_restore(struct cli *cli, struct error *err)
{
    const char *at = strchr(cli->arguments[0], '@');
    char what[512];
    if (!at || at == cli->arguments[0] || !at[1]) {
        (void)error_set(err, EINVAL, "'%s' is not VOLUME@SNAPSHOT", cli->arguments[0]);
        return error_code(err, CLI_USAGE);
    }
    CLEANUP_FREE char *volume = strndup(cli->arguments[0], (size_t)(at - cli->arguments[0]));
    if (!volume)
        return error_set(err, ENOMEM, "out of memory");
    (void)snprintf(what, sizeof(what), "Lose what volume '%s' holds now and go back to '%s'", volume, at + 1);
    int r = confirm(cli, what, volume, err);
    if (r < 0)
        return r;
    CLEANUP_FREE char *path = request_path("/v1/volumes/", volume, "/restore");
    json_t *body = json_pack("{s:s}", "snapshot", at + 1);
    r = path && body ? print_change(cli, "POST", path, body, volume_details, err)
                     : error_set(err, ENOMEM, "out of memory");
    json_decref(body);
    return r;
}

static const struct value_spec create_options[] = {
    {"freeze", VALUE_FLAG, "freeze", "hold the mounted file system still, so that the snapshot needs no recovery"},
    {NULL},
};

static const struct value_spec changed_options[] = {
    {"since", VALUE_TEXT, NULL, "an older snapshot; without it, all that is allocated", "SNAPSHOT"},
    {NULL},
};

static const struct value_spec delete_options[] = {
    {"yes", VALUE_FLAG, NULL, "do not ask (-y)"},
    {NULL},
};

#define SNAPSHOT_ARGUMENT                                                                                              \
    {                                                                                                                  \
        "VOLUME@SNAPSHOT", VALUE_SNAPSHOT, NULL, "the snapshot"                                                        \
    }

const struct command snapshot_commands[] = {
    {"snapshot",
     "create",
     "Keep volumes as they are now, in use or not",
     {{CREATE_ARGUMENT, VALUE_TEXT, "name", "the volume and the snapshot's name; several: at one point in time",
       .repeat = true}},
     create_options,
     snapshot_create},
    {"snapshot",
     "list",
     "List the snapshots, of one volume or of all",
     {{"VOLUME", VALUE_VOLUME, NULL, "only of this volume", .optional = true}},
     NULL,
     snapshot_list},
    {"snapshot", "show", "Show one snapshot", {SNAPSHOT_ARGUMENT}, NULL, snapshot_show},
    {"snapshot",
     "changed",
     "List what is allocated in a snapshot, or changed since another one",
     {SNAPSHOT_ARGUMENT},
     changed_options,
     snapshot_changed},
    {"snapshot",
     "delete",
     "Delete a snapshot; its space is given back in the background",
     {SNAPSHOT_ARGUMENT},
     delete_options,
     snapshot_delete},
    {NULL},
};
