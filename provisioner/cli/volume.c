// SPDX-License-Identifier: Apache-2.0
/* platter volume create|import|export|clone|restore|list|show|resize|check|compact|delete */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "common/size.h"
#include "provisioner/cli/check.h"
#include "provisioner/cli/confirm.h"
#include "provisioner/cli/nouns.h"
#include "provisioner/cli/output.h"
#include "provisioner/cli/request.h"
#include "provisioner/cli/snapshot.h"

static const struct column volume_columns[] = {
    {"NAME", "name"},
    {"POOL", "pool"},
    {"SIZE", "size", COLUMN_SIZE},
    {"USED", "used", COLUMN_SIZE},
    {"FORMAT", "format"},
    {"FILESYSTEM", "filesystem"},
    {"STATE", "state"},
    {NULL},
};

const struct column volume_details[] = {
    {"Name", "name"},
    {"ID", "id"},
    {"Pool", "pool"},
    {"State", "state"},
    {"Size", "size", COLUMN_SIZE},
    {"Used", "used", COLUMN_SIZE},
    {"Format", "format"},
    {"Cluster size", "layers.0.cluster_size", COLUMN_SIZE},
    {"qcow2 version", "layers.0.version"},
    {"Extended L2", "layers.0.extended_l2"},
    {"Compression", "layers.0.compression"},
    {"Refcount bits", "layers.0.refcount_bits"},
    {"File system", "filesystem"},
    {"Formatted", "formatted"},
    {"Attachment", "attachments.0"},
    {"Created", "created", COLUMN_TIME},
    {NULL},
};

/* Sends a change of a volume and prints the volume that comes back. */
static int change_and_print(struct cli *cli, const char *method, const char *path, const json_t *body,
                            struct error *err)
{
    json_t *volume = NULL;
    bool job_printed = false;
    int r = request_change(cli, method, path, body, &volume, &job_printed, err);
    if (r < 0)
        return r;
    if (volume)
        output_object(cli, volume, volume_details, "name");
    json_decref(volume);
    return 0;
}

static int volume_create(struct cli *cli, struct error *err)
{
    return change_and_print(cli, "POST", "/v1/volumes", cli->body, err);
}

/* "FILE" or "FILE:qcow2" or "FILE:raw" as {path, format}: a new reference. The format defaults to qcow2. */
static json_t *parse_parent(const char *text, struct error *err)
{
    const char *format = "qcow2", *colon = strrchr(text, ':');
    size_t length = strlen(text);
    if (colon && (strcmp(colon, ":raw") == 0 || strcmp(colon, ":qcow2") == 0)) {
        format = colon + 1;
        length = (size_t)(colon - text);
    }
    CLEANUP_FREE char *file = strndup(text, length);
    CLEANUP_FREE char *path = file ? cli_absolute_path(file, err) : NULL;
    json_t *parent = path ? json_pack("{s:s, s:s}", "path", path, "format", format) : NULL;
    if (!parent && !(err && err->errnum))
        (void)error_set(err, EINVAL, "--parent: '%s' cannot be used as a path", text);
    return parent;
}

static int volume_import(struct cli *cli, struct error *err)
{
    json_t *texts = json_object_get(cli->options, "parent"), *text;
    size_t index;
    if (texts) {
        json_t *parents = json_array();
        if (json_object_set_new(cli->body, "parents", parents) < 0)
            return error_set(err, ENOMEM, "out of memory");
        json_array_foreach (texts, index, text) {
            json_t *parent = parse_parent(json_string_value(text), err);
            if (!parent)
                return -EINVAL;
            if (json_array_append_new(parents, parent) < 0)
                return error_set(err, ENOMEM, "out of memory");
        }
    }
    return change_and_print(cli, "POST", "/v1/volumes/import", cli->body, err);
}

static int volume_export(struct cli *cli, struct error *err)
{
    CLEANUP_FREE char *path = request_path("/v1/volumes/", cli->arguments[0], "/export");
    if (!path)
        return error_set(err, ENOMEM, "out of memory");
    json_t *result = NULL;
    bool job_printed = false;
    int r = request_change(cli, "POST", path, cli->body, &result, &job_printed, err);
    if (r < 0)
        return r;
    const char *target = json_string_value(json_object_get(cli->body, "target"));
    if (cli->output == OUTPUT_JSON && result)
        output_object(cli, result, volume_details, "name");
    else if (!job_printed && target)
        (void)printf(cli->output == OUTPUT_NAME ? "%s\n" : "Written to %s\n", target);
    json_decref(result);
    return 0;
}

static int volume_list(struct cli *cli, struct error *err)
{
    const char *pool = cli_option(cli, "pool");
    CLEANUP_FREE char *path = pool ? request_path("/v1/volumes?pool=", pool, "") : strdup("/v1/volumes");
    json_t *volumes = NULL;
    int r = path ? request_list(cli, path, "volumes", &volumes, err) : error_set(err, ENOMEM, "out of memory");
    if (r < 0)
        return r;
    output_list(cli, volumes, volume_columns, "name");
    json_decref(volumes);
    return 0;
}

static int volume_show(struct cli *cli, struct error *err)
{
    json_t *volume = NULL;
    CLEANUP_FREE char *path = request_path("/v1/volumes/", cli->arguments[0], "");
    int r = path ? request_get(cli, path, &volume, err) : error_set(err, ENOMEM, "out of memory");
    if (r < 0)
        return r;
    output_object(cli, volume, volume_details, "name");
    json_decref(volume);
    return 0;
}

static int volume_resize(struct cli *cli, struct error *err)
{
    if (!json_object_get(cli->body, "size")) {
        (void)error_set(err, EINVAL, "SIZE is missing");
        return error_code(err, CLI_USAGE);
    }
    CLEANUP_FREE char *path = request_path("/v1/volumes/", cli->arguments[0], "/resize");
    return path ? change_and_print(cli, "POST", path, cli->body, err) : error_set(err, ENOMEM, "out of memory");
}

static void print_compacted(const char *volume, const json_t *result)
{
    static const char *const members[] = {"length_after", "length_before", "after", "before"};
    char text[ARRAY_SIZE(members)][SIZE_TEXT_MAX];
    for (size_t i = 0; i < ARRAY_SIZE(members); i++)
        (void)size_format((uint64_t)json_integer_value(json_object_get(result, members[i])), text[i]);
    (void)printf("Compacted %s: its top layer's file is %s long (was %s) and takes %s (took %s)\n", volume, text[0],
                 text[1], text[2], text[3]);
}

static int volume_compact(struct cli *cli, struct error *err)
{
    CLEANUP_FREE char *path = request_path("/v1/volumes/", cli->arguments[0], "/compact");
    json_t *result = NULL;
    bool job_printed = false;
    int r = path ? request_change(cli, "POST", path, NULL, &result, &job_printed, err)
                 : error_set(err, ENOMEM, "out of memory");
    if (r < 0 || !result)
        return r;
    if (cli->output == OUTPUT_TABLE)
        print_compacted(cli->arguments[0], result);
    else
        output_object(cli, result, volume_details, "volume");
    json_decref(result);
    return 0;
}

static int volume_delete(struct cli *cli, struct error *err)
{
    char what[512];
    (void)snprintf(what, sizeof(what), "Delete volume '%s' and all its data", cli->arguments[0]);
    int r = confirm(cli, what, cli->arguments[0], err);
    if (r < 0)
        return r;
    CLEANUP_FREE char *path =
        request_path("/v1/volumes/", cli->arguments[0], cli_flag(cli, "snapshots") ? "?snapshots=1" : "");
    json_t *object = NULL;
    bool job_printed = false;
    r = path ? request_change(cli, "DELETE", path, NULL, &object, &job_printed, err)
             : error_set(err, ENOMEM, "out of memory");
    if (r == 0)
        json_decref(object);
    return r;
}

static const struct value_spec create_options[] = {
    {"size", VALUE_SIZE, "size", "how much it holds", "SIZE", .required = true},
    {"pool", VALUE_POOL, "pool", "where it lives; may be left out while there is one pool", "POOL"},
    {"format", VALUE_CHOICE, "format", "of the image file", "qcow2|raw"},
    {"filesystem", VALUE_CHOICE, "filesystem", "made at the first mount", "ext4|xfs|none"},
    {"cluster-size", VALUE_SIZE, "cluster_size", "of qcow2, 512 bytes to 2 MiB", "SIZE"},
    {"version", VALUE_NUMBER, "version", "of qcow2: 2 or 3", "N"},
    {"extended-l2", VALUE_FLAG, "extended_l2", "qcow2 with sub-clusters"},
    {"compression", VALUE_CHOICE, "compression", "of compressed clusters in qcow2", "zlib|zstd"},
    {"refcount-bits", VALUE_NUMBER, "refcount_bits", "of qcow2: 1 to 64, a power of two", "N"},
    {"preallocate", VALUE_FLAG, "preallocate", "raw: reserve all its space now"},
    {"on-no-space", VALUE_CHOICE, "on_no_space", "writes that the pool has no space for: wait, or fail", "pause|fail"},
    {NULL},
};

static const struct value_spec import_options[] = {
    {"source-format", VALUE_CHOICE, "source_format", "what FILE is; it is never guessed", "qcow2|raw",
     .required = true},
    {"pool", VALUE_POOL, "pool", "where the volume shall live", "POOL"},
    {"format", VALUE_CHOICE, "format", "of the volume", "qcow2|raw"},
    {"parent", VALUE_TEXT, NULL, "what FILE is based on, nearest first; repeatable", "FILE[:FORMAT]", .repeat = true},
    {"onto", VALUE_FLAG, "onto", "NAME is there: apply FILE, the export of a snapshot, to it"},
    {"preserve", VALUE_FLAG, "preserve", "keep the qcow2 files as they are, parents too"},
    {"filesystem", VALUE_CHOICE, "filesystem", "what the image holds; looked for when left out", "ext4|xfs|none"},
    {NULL},
};

static const struct value_spec export_options[] = {
    {"format", VALUE_CHOICE, "format", "of the file", "raw|qcow2", .required = true},
    {"since", VALUE_TEXT, "since", "of VOLUME@SNAPSHOT: only what changed since this older one", "SNAPSHOT"},
    {NULL},
};

static const struct value_spec list_options[] = {
    {"pool", VALUE_POOL, NULL, "only of this pool", "POOL"},
    {NULL},
};

static const struct value_spec resize_options[] = {
    {"size", VALUE_SIZE, "size", "the new size", "SIZE"},
    {"shrink", VALUE_FLAG, "shrink", "smaller is meant; the volume must be detached"},
    {"discard-data", VALUE_FLAG, "discard_data", "with --shrink: let go of data of unknown kind beyond the new end"},
    {NULL},
};

static const struct value_spec clone_options[] = {
    {"size", VALUE_SIZE, "size", "of the new volume, when it shall be larger", "SIZE"},
    {NULL},
};

static const struct value_spec restore_options[] = {
    {"yes", VALUE_FLAG, NULL, "do not ask (-y)"},
    {NULL},
};

static const struct value_spec delete_options[] = {
    {"snapshots", VALUE_FLAG, NULL, "its snapshots, too; clones of them stay"},
    {"yes", VALUE_FLAG, NULL, "do not ask (-y)"},
    {NULL},
};

static const struct value_spec check_options[] = {
    {"repair", VALUE_FLAG, "repair", "put right what can be"},
    {NULL},
};

#define VOLUME_ARGUMENT                                                                                                \
    {                                                                                                                  \
        "VOLUME", VALUE_VOLUME, NULL, "the volume's name or id"                                                        \
    }

const struct command volume_commands[] = {
    {"volume",
     "create",
     "Make a new, empty volume",
     {{"NAME", VALUE_TEXT, "name", "the volume's name"}},
     create_options,
     volume_create},
    {"volume",
     "import",
     "Make a volume from an image file",
     {{"NAME", VALUE_TEXT, "name", "the volume's name"}, {"FILE", VALUE_FILE, "source", "read with your rights"}},
     import_options,
     volume_import},
    {"volume",
     "export",
     "Write a volume to a new image file",
     {VOLUME_ARGUMENT, {"FILE", VALUE_FILE, "target", "must not exist; made with your rights"}},
     export_options,
     volume_export},
    {"volume",
     "clone",
     "Make a volume that begins as a snapshot, at once",
     {{"VOLUME@SNAPSHOT", VALUE_SNAPSHOT, "snapshot", "the snapshot"},
      {"NAME", VALUE_TEXT, "name", "the new volume's name"}},
     clone_options,
     snapshot_clone},
    {"volume",
     "restore",
     "Let a detached volume become what it was at a snapshot",
     {{"VOLUME@SNAPSHOT", VALUE_SNAPSHOT, NULL, "the snapshot"}},
     restore_options,
     snapshot_restore},
    {"volume", "list", "List the volumes", {{NULL}}, list_options, volume_list},
    {"volume", "show", "Show one volume", {VOLUME_ARGUMENT}, NULL, volume_show},
    {"volume",
     "resize",
     "Make a volume larger, in use or not, or smaller while detached",
     {VOLUME_ARGUMENT, {"SIZE", VALUE_SIZE, "size", "the new size", .optional = true}},
     resize_options,
     volume_resize},
    {"volume", "check", "Look for damage in a volume's images", {VOLUME_ARGUMENT}, check_options, volume_check},
    {"volume",
     "compact",
     "Write a detached volume's top layer anew, in less space",
     {VOLUME_ARGUMENT},
     NULL,
     volume_compact},
    {"volume", "delete", "Delete a volume and its data", {VOLUME_ARGUMENT}, delete_options, volume_delete},
    {NULL},
};
