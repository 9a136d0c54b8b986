// SPDX-License-Identifier: Apache-2.0
/* platter attachment list|show */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "provisioner/cli/nouns.h"
#include "provisioner/cli/output.h"
#include "provisioner/cli/request.h"

static const struct column attachment_columns[] = {
    {"ID", "id"},
    {"VOLUME", "volume"},
    {"KIND", "kind"},
    {"STATE", "state"},
    {"READ-ONLY", "read_only", COLUMN_BOOL},
    {"TARGET", "target"},
    {"DEVICE", "device"},
    {NULL},
};

const struct column attachment_details[] = {
    {"ID", "id"},
    {"Volume", "volume"},
    {"Kind", "kind"},
    {"State", "state"},
    {"Target", "target"},
    {"Device", "device"},
    {"Socket", "socket"},
    {"Export", "export"},
    {"Via", "via"},
    {"File system", "filesystem"},
    {"Read-only", "read_only"},
    {"Queues", "queues"},
    {"Holder", "holder"},
    {"Server", "server_pid"},
    {"Error", "error.message"},
    {"Created", "created", COLUMN_TIME},
    {NULL},
};

static int attachment_list(struct cli *cli, struct error *err)
{
    const char *volume = cli_option(cli, "volume");
    CLEANUP_FREE char *path = volume ? request_path("/v1/attachments?volume=", volume, "") : strdup("/v1/attachments");
    json_t *attachments = NULL;
    int r = path ? request_list(cli, path, "attachments", &attachments, err) : error_set(err, ENOMEM, "out of memory");
    if (r < 0)
        return r;
    output_list(cli, attachments, attachment_columns, "id");
    json_decref(attachments);
    return 0;
}

static int attachment_show(struct cli *cli, struct error *err)
{
    CLEANUP_FREE char *path = request_path("/v1/attachments/", cli->arguments[0], "");
    json_t *attachment = NULL;
    int r = path ? request_get(cli, path, &attachment, err) : error_set(err, ENOMEM, "out of memory");
    if (r < 0)
        return r;
    output_object(cli, attachment, attachment_details, "id");
    json_decref(attachment);
    return 0;
}

static const struct value_spec list_options[] = {
    {"volume", VALUE_VOLUME, NULL, "only of this volume", "VOLUME"},
    {NULL},
};

const struct command attachment_commands[] = {
    {"attachment", "list", "List who uses which volume", {{NULL}}, list_options, attachment_list},
    {"attachment",
     "show",
     "Show one attachment",
     {{"ID", VALUE_ATTACHMENT, NULL, "the attachment's id"}},
     NULL,
     attachment_show},
    {NULL},
};
