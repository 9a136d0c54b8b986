// SPDX-License-Identifier: Apache-2.0
/* platter help, version, exit-codes, completion: what platter says about itself. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/checked.h"
#include "provisioner/cli/nouns.h"
#include "provisioner/cli/output.h"
#include "provisioner/cli/request.h"

static const struct {
    enum exit_code code;
    const char *name;
    const char *meaning;
} exit_codes[] = {
    {EXIT_CODE_OK, "ok", "done"},
    {EXIT_CODE_FAILED, "failed", "an error that no other code names"},
    {EXIT_CODE_USAGE, "usage", "the command line is wrong"},
    {EXIT_CODE_NOT_FOUND, "not-found", "there is no such volume, pool, attachment, job or file"},
    {EXIT_CODE_EXISTS, "exists", "it exists already, and differs from what was asked for"},
    {EXIT_CODE_IN_USE, "in-use", "somebody holds it; the message says who"},
    {EXIT_CODE_NO_SPACE, "no-space", "the pool or file system is full"},
    {EXIT_CODE_REFUSED, "refused", "invalid or not allowed: nothing was changed"},
    {EXIT_CODE_PERMISSION, "permission", "you may not do this"},
    {EXIT_CODE_UNREACHABLE, "unreachable", "platterd does not answer on its socket"},
    {EXIT_CODE_TIMEOUT, "timeout", "the time ran out; the job may still be running"},
};

static void print_usage(const struct command *command)
{
    (void)printf("platter %s%s%s", command->noun, command->verb ? " " : "", command->verb ? command->verb : "");
    for (int i = 0; i < COMMAND_ARGUMENTS_MAX && command->arguments[i].name; i++)
        (void)printf(command->arguments[i].optional ? " [%s]"
                     : command->arguments[i].repeat ? " %s..."
                                                    : " %s",
                     command->arguments[i].name);
    for (const struct value_spec *spec = command->options; spec && spec->name; spec++) {
        if (spec->required)
            (void)printf(" --%s %s", spec->name, spec->choices ? spec->choices : "VALUE");
    }
}

static void print_options(const struct value_spec *spec)
{
    for (; spec && spec->name; spec++) {
        char label[64];
        (void)snprintf(label, sizeof(label), "--%s%s%s", spec->name, spec->kind == VALUE_FLAG ? "" : " ",
                       spec->kind == VALUE_FLAG ? ""
                       : spec->choices          ? spec->choices
                                                : "VALUE");
        (void)printf("  %-36s %s\n", label, spec->help);
    }
}

void help_print_command(const struct command *command)
{
    (void)printf("%s.\n\nUsage: ", command->summary);
    print_usage(command);
    (void)fputs(command->options ? " [OPTIONS]\n" : "\n", stdout);
    if (command->arguments[0].name)
        (void)puts("\nArguments:");
    for (int i = 0; i < COMMAND_ARGUMENTS_MAX && command->arguments[i].name; i++)
        (void)printf("  %-36s %s\n", command->arguments[i].name, command->arguments[i].help);
    if (command->options)
        (void)puts("\nOptions:");
    print_options(command->options);
    (void)puts("\nOptions of every command:");
    print_options(cli_common_options);
}

void help_print_all(void)
{
    (void)puts("platter: one storage provisioner for containers and virtual machines.\n\nCommands:");
    for (const struct command *const *group = command_groups; *group; group++) {
        for (const struct command *command = *group; command->noun; command++) {
            char label[128];
            int n = snprintf(label, sizeof(label), "%s%s%s", command->noun, command->verb ? " " : "",
                             command->verb ? command->verb : "");
            for (int i = 0; n > 0 && i < COMMAND_ARGUMENTS_MAX && command->arguments[i].name; i++)
                n += snprintf(label + n, sizeof(label) - (size_t)n,
                              command->arguments[i].optional ? " [%s]"
                              : command->arguments[i].repeat ? " %s..."
                                                             : " %s",
                              command->arguments[i].name);
            (void)printf("  %-30s %s\n", label, command->summary);
        }
    }
    (void)puts("\nOptions of every command:");
    print_options(cli_common_options);
    (void)puts("\nMore: platter help NOUN VERB, platter exit-codes");
}

int help_run(struct cli *cli, struct error *err)
{
    const char *noun = cli->arguments[0], *verb = cli->arguments[1];
    const struct command *command = noun ? command_find(noun, verb) : NULL;
    if (!noun) {
        help_print_all();
        return 0;
    }
    if (command) {
        help_print_command(command);
        return 0;
    }
    if (verb || !command_noun_has_verbs(noun)) {
        (void)error_set(err, EINVAL, "there is no command '%s%s%s'", noun, verb ? " " : "", verb ? verb : "");
        return error_code(err, CLI_USAGE);
    }
    for (const struct command *const *group = command_groups; *group; group++) {
        for (command = *group; command->noun; command++) {
            if (strcmp(command->noun, noun) != 0)
                continue;
            print_usage(command);
            (void)printf("\n    %s\n", command->summary);
        }
    }
    return 0;
}

int help_exit_codes_run(struct cli *cli, struct error *err)
{
    static const struct column columns[] = {{"CODE", "code"}, {"NAME", "name"}, {"MEANING", "meaning"}, {NULL}};
    json_t *array = json_array();
    for (size_t i = 0; i < ARRAY_SIZE(exit_codes); i++) {
        json_t *row = json_pack("{s:i, s:s, s:s}", "code", (int)exit_codes[i].code, "name", exit_codes[i].name,
                                "meaning", exit_codes[i].meaning);
        if (json_array_append_new(array, row) < 0) {
            json_decref(array);
            return error_set(err, ENOMEM, "out of memory");
        }
    }
    output_list(cli, array, columns, "name");
    json_decref(array);
    return 0;
}

static int version_run(struct cli *cli, struct error *err)
{
    static const struct column columns[] = {
        {"platter", "platter"}, {"platterd", "platterd"}, {"API level", "api_level"}, {NULL}};
    json_t *server = NULL;
    int r = request_get(cli, "/v1", &server, err);
    if (r < 0) {
        if (cli->output == OUTPUT_TABLE)
            (void)puts("platter    " PLATTER_VERSION);
        return r;
    }
    json_t *versions = json_pack("{s:s, s:O?, s:O?}", "platter", PLATTER_VERSION, "platterd",
                                 json_object_get(server, "version"), "api_level", json_object_get(server, "api_level"));
    if (versions)
        output_object(cli, versions, columns, "platter");
    json_decref(versions);
    json_decref(server);
    return 0;
}

static int completion_run(struct cli *cli, struct error *err)
{
    (void)cli;
    (void)err;
    (void)fputs(
        "# bash completion for platter: eval \"$(platter completion bash)\"\n"
        "_platter() {\n"
        "    mapfile -t COMPREPLY < <(\"${COMP_WORDS[0]}\" __complete \"${COMP_WORDS[@]:1:COMP_CWORD}\" 2>/dev/null)\n"
        "}\n"
        "complete -o default -F _platter platter\n",
        stdout);
    return 0;
}

const struct command self_commands[] = {
    {"version", NULL, "Show the versions of the command and of platterd", {{NULL}}, NULL, version_run},
    {"completion",
     NULL,
     "Print the completion script of a shell",
     {{"SHELL", VALUE_CHOICE, NULL, "the shell", "bash"}},
     NULL,
     completion_run},
    {"help",
     NULL,
     "Explain a command",
     {{"NOUN", VALUE_TEXT, NULL, "such as volume", .optional = true},
      {"VERB", VALUE_TEXT, NULL, "such as create", .optional = true}},
     NULL,
     help_run},
    {"exit-codes", NULL, "List the exit codes", {{NULL}}, NULL, help_exit_codes_run},
    {NULL},
};
