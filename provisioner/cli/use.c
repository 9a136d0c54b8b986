// SPDX-License-Identifier: Apache-2.0
/* platter mount, unmount, attach, detach: making and ending attachments. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "provisioner/cli/nouns.h"
#include "provisioner/cli/output.h"
#include "provisioner/cli/request.h"

static int make_attachment(struct cli *cli, json_t **ret_attachment, struct error *err)
{
    bool job_printed = false;
    return request_change(cli, "POST", "/v1/attachments", cli->body, ret_attachment, &job_printed, err);
}

static int set_text(json_t *body, const char *member, const char *text, struct error *err)
{
    return json_object_set_new(body, member, json_string(text)) < 0
               ? error_set(err, EINVAL, "%s cannot be sent: not UTF-8 or no memory", member)
               : 0;
}

/* The target as the kernel will name it: links resolved where that is possible. The caller frees. */
static char *resolved_target(const char *text, struct error *err)
{
    char *resolved = realpath(text, NULL);
    return resolved ? resolved : cli_absolute_path(text, err);
}

static int mount_run(struct cli *cli, struct error *err)
{
    CLEANUP_FREE char *target = resolved_target(cli->arguments[1], err);
    if (!target)
        return err->errnum ? -err->errnum : -ENOMEM;
    int r = set_text(cli->body, "target", target, err);
    if (r == 0)
        r = set_text(cli->body, "kind", "mount", err);
    json_t *attachment = NULL;
    if (r == 0)
        r = make_attachment(cli, &attachment, err);
    if (r < 0)
        return r;
    if (attachment && cli->output == OUTPUT_TABLE)
        (void)printf("Mounted %s at %s\n", cli->arguments[0], target);
    else if (attachment)
        attachment_print(cli, attachment);
    json_decref(attachment);
    return 0;
}

static int delete_attachment(struct cli *cli, const char *id, struct error *err)
{
    CLEANUP_FREE char *path = request_path("/v1/attachments/", id, "");
    json_t *object = NULL;
    bool job_printed = false;
    int r = path ? request_change(cli, "DELETE", path, NULL, &object, &job_printed, err)
                 : error_set(err, ENOMEM, "out of memory");
    if (r == 0)
        json_decref(object);
    return r;
}

/* A mount is known by its target too. The record may hold either spelling: with links resolved, or as it was given. */
static int unmount_run(struct cli *cli, struct error *err)
{
    CLEANUP_FREE char *plain = cli_absolute_path(cli->arguments[0], err);
    CLEANUP_FREE char *resolved = plain ? resolved_target(plain, err) : NULL;
    if (!resolved)
        return err->errnum ? -err->errnum : -ENOMEM;
    size_t length = strlen(plain);
    while (length > 1 && plain[length - 1] == '/')
        plain[--length] = '\0';
    int r = delete_attachment(cli, resolved, err);
    if (r == -ENOENT && strcmp(plain, resolved) != 0)
        r = delete_attachment(cli, plain, err);
    if (r == -ENOENT) {
        (void)error_set(err, ENOENT, "no volume of platter is mounted at '%s'", plain);
        r = error_hint(err, "platter attachment list");
    }
    return r;
}

/* ---- attach ---- */

static int attach_run(struct cli *cli, struct error *err)
{
    json_t *attachment = NULL;
    int r = make_attachment(cli, &attachment, err);
    if (r < 0)
        return r;
    if (attachment)
        attachment_print(cli, attachment);
    json_decref(attachment);
    return 0;
}

static int detach_run(struct cli *cli, struct error *err)
{
    return delete_attachment(cli, cli->arguments[0], err);
}

static const struct value_spec mount_options[] = {
    {"read-only", VALUE_FLAG, "read_only", "mount it read-only"},
    {"filesystem", VALUE_CHOICE, "filesystem", "what it must hold", "ext4|xfs"},
    {"options", VALUE_TEXT, "mount_options", "mount options, such as noatime,nosuid", "LIST"},
    {"via", VALUE_CHOICE, "via", "how the host reaches the image", "auto|fuse|loop"},
    {"holder", VALUE_TEXT, "holder", "a note on who uses it", "TEXT"},
    {NULL},
};

static const struct value_spec attach_options[] = {
    {"to", VALUE_CHOICE, "kind", "a block device of this host, or a disk of a VM", "device|vm", .required = true},
    {"read-only", VALUE_FLAG, "read_only", "nobody can write"},
    {"export", VALUE_CHOICE, "export", "vm: how the disk is offered", "vhost-user-blk|nbd"},
    {"queues", VALUE_NUMBER, "queues", "vm: request queues", "N"},
    {"qmp", VALUE_FILE, "qmp", "vm: QEMU's monitor; the disk is plugged in and out through it", "SOCKET"},
    {"via", VALUE_CHOICE, "via", "device: how the host reaches the image", "auto|fuse|loop"},
    {"holder", VALUE_TEXT, "holder", "a note on who uses it", "TEXT"},
    {NULL},
};

const struct command use_commands[] = {
    {"mount",
     NULL,
     "Mount a volume on a directory",
     {{"VOLUME", VALUE_VOLUME, "volume", "the volume's name or id"},
      {"TARGET", VALUE_FILE, NULL, "an existing directory"}},
     mount_options,
     mount_run},
    {"unmount", NULL, "Unmount a volume", {{"TARGET", VALUE_FILE, NULL, "where it is mounted"}}, NULL, unmount_run},
    {"attach",
     NULL,
     "Give a volume to this host as a device, or to a VM as a disk",
     {{"VOLUME", VALUE_VOLUME, "volume", "the volume's name or id"}},
     attach_options,
     attach_run},
    {"detach", NULL, "End an attachment", {{"ID", VALUE_ATTACHMENT, NULL, "the attachment's id"}}, NULL, detach_run},
    {NULL},
};
