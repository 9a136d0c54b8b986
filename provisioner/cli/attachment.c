// SPDX-License-Identifier: Apache-2.0
/* platter attachment list|show */
#include <errno.h>
#include <stdio.h>
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

static const struct column attachment_details[] = {
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

/* ---- what a VM needs ---- */

static bool plain_word(const char *text)
{
    return *text &&
           strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=,.:/@%+") == strlen(text);
}

static void print_words(const char *title, const json_t *words)
{
    size_t index;
    json_t *word;
    if (!json_is_array(words) || !json_array_size(words))
        return;
    (void)printf("\n%s:\n", title);
    json_array_foreach (words, index, word) {
        CLEANUP_FREE char *dumped = json_is_string(word) ? NULL : json_dumps(word, JSON_COMPACT | JSON_ENCODE_ANY);
        const char *text = dumped ? dumped : json_string_value(word);
        const json_t *next = json_array_get(words, index + 1);
        const char *next_text = json_string_value(next);
        bool quoted = !dumped && !plain_word(text);
        /* One option and its value a line, so that the block can be pasted behind a command ending in "\". */
        bool joined = !dumped && text[0] == '-' && next_text && next_text[0] != '-';
        bool first_on_line =
            index == 0 || dumped || text[0] == '-' || json_string_value(json_array_get(words, index - 1))[0] != '-';
        (void)printf("%s%s", first_on_line ? "  " : " ", quoted ? "'" : "");
        output_text(stdout, text ? text : "");
        (void)printf("%s%s", quoted ? "'" : "", joined ? "" : next && !dumped ? " \\\n" : "\n");
    }
}

static void print_vm(const json_t *qemu)
{
    print_words("QEMU arguments", json_object_get(qemu, "arguments"));
    print_words("QMP commands", json_object_get(qemu, "qmp"));
    const char *xml = json_string_value(json_object_get(qemu, "libvirt"));
    const char *note = json_string_value(json_object_get(qemu, "note"));
    if (xml)
        (void)printf("\nlibvirt XML:\n%s%s", xml, xml[0] && xml[strlen(xml) - 1] == '\n' ? "" : "\n");
    if (note && note[0])
        (void)printf("\n%s\n", note);
}

void attachment_print(const struct cli *cli, const json_t *attachment)
{
    output_object(cli, attachment, attachment_details, "id");
    if (cli->output == OUTPUT_TABLE)
        print_vm(json_object_get(attachment, "qemu"));
}

/* ---- commands ---- */

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
    attachment_print(cli, attachment);
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
