// SPDX-License-Identifier: Apache-2.0
/*
 * From words to a command and a request's body. getopt_long does the splitting; its table is made from the command's
 * own description. Options may stand before, between and after the arguments; "--" ends them.
 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "common/size.h"
#include "provisioner/cli/command.h"

#define OPTIONS_MAX 40
#define TIMEOUT_SECONDS_MAX (INT_MAX / 1000)

const struct value_spec cli_common_options[] = {
    {"output", VALUE_CHOICE, NULL, "how to print: a table, JSON, or only names (-o)", "table|json|name"},
    {"socket", VALUE_FILE, NULL, "platterd's socket (PLATTER_SOCKET)", "PATH"},
    {"no-wait", VALUE_FLAG, NULL, "print the job and do not wait for its end"},
    {"timeout", VALUE_TEXT, NULL, "give up waiting after so long; the job goes on", "SECONDS"},
    {"progress", VALUE_CHOICE, NULL, "on standard error; auto is a bar on a terminal", "auto|bar|jsonl|none"},
    {"help", VALUE_FLAG, NULL, "show the command's help (-h)"},
    {NULL},
};

char *cli_absolute_path(const char *path, struct error *err)
{
    char *absolute = NULL;
    if (!path[0]) {
        (void)error_set(err, EINVAL, "an empty path");
        return NULL;
    }
    if (path[0] == '/')
        absolute = strdup(path);
    else {
        CLEANUP_FREE char *here = getcwd(NULL, 0);
        if (!here) {
            (void)error_sys(err, errno, "the current directory");
            return NULL;
        }
        if (asprintf(&absolute, "%s/%s", strcmp(here, "/") == 0 ? "" : here, path) < 0)
            absolute = NULL;
    }
    if (!absolute)
        (void)error_set(err, ENOMEM, "out of memory");
    return absolute;
}

static bool is_choice(const char *choices, const char *text)
{
    size_t length = strlen(text);
    for (const char *at = choices; length && *at; at += strcspn(at, "|"), at += *at == '|') {
        if (strcspn(at, "|") == length && strncmp(at, text, length) == 0)
            return true;
    }
    return false;
}

static json_t *parse_number(const char *text)
{
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    return errno || end == text || *end || number < 0 ? NULL : json_integer(number);
}

static json_t *parse_ratio(const char *text)
{
    char *end;
    errno = 0;
    double number = strtod(text, &end);
    return errno || end == text || *end || !isfinite(number) || number <= 0 ? NULL : json_real(number);
}

/* The value as it stands in a request: a new reference, NULL with `err` set. */
static json_t *value_parse(const struct value_spec *spec, const char *label, const char *text, struct error *err)
{
    json_t *value = NULL;
    uint64_t bytes;
    switch (spec->kind) {
    case VALUE_FLAG:
        return json_true();
    case VALUE_SIZE:
        if (size_parse(text, &bytes) == 0)
            value = json_integer((json_int_t)bytes);
        else
            (void)error_set(err, EINVAL, "%s: '%s' is not a size such as 10G, 512MiB or 4096", label, text);
        return value;
    case VALUE_NUMBER:
        value = parse_number(text);
        if (!value)
            (void)error_set(err, EINVAL, "%s: '%s' is not a whole number", label, text);
        return value;
    case VALUE_RATIO:
        value = parse_ratio(text);
        if (!value)
            (void)error_set(err, EINVAL, "%s: '%s' is not a positive number", label, text);
        return value;
    case VALUE_CHOICE:
        if (!is_choice(spec->choices, text)) {
            (void)error_set(err, EINVAL, "%s: '%s' is none of %s", label, text, spec->choices);
            return NULL;
        }
        break;
    case VALUE_FILE: {
        CLEANUP_FREE char *path = cli_absolute_path(text, err);
        value = path ? json_string(path) : NULL;
        if (path && !value)
            (void)error_set(err, EINVAL, "%s: the path is not UTF-8", label);
        return value;
    }
    default:
        break;
    }
    value = json_string(text);
    if (!value)
        (void)error_set(err, EINVAL, "%s is not UTF-8", label);
    return value;
}

static int keep_value(struct cli *cli, const struct value_spec *spec, const char *text, bool is_option,
                      struct error *err)
{
    char label[64];
    (void)snprintf(label, sizeof(label), "%s%s", is_option ? "--" : "", spec->name);
    json_t *value = value_parse(spec, label, text, err);
    if (!value)
        return -EINVAL;
    int r = spec->member ? json_object_set(cli->body, spec->member, value) : 0;
    if (r == 0 && is_option && spec->repeat) {
        json_t *array = json_object_get(cli->options, spec->name);
        if (!array)
            r = json_object_set_new(cli->options, spec->name, json_pack("[O]", value));
        else
            r = json_array_append(array, value);
    } else if (r == 0 && is_option) {
        if (json_object_get(cli->options, spec->name))
            r = error_set(err, EINVAL, "%s is given twice", label);
        else
            r = json_object_set_new(cli->options, spec->name,
                                    json_is_string(value) || json_is_true(value) ? json_incref(value)
                                                                                 : json_string(text));
    }
    json_decref(value);
    return r == -1 ? error_set(err, ENOMEM, "out of memory") : r;
}

/* ---- options ---- */

struct option_table {
    struct option options[OPTIONS_MAX + 1];
    const struct value_spec *specs[OPTIONS_MAX];
    int count;
};

static void table_add(struct option_table *table, const struct value_spec *spec)
{
    for (; spec && spec->name && table->count < OPTIONS_MAX; spec++, table->count++) {
        table->options[table->count] = (struct option){
            .name = spec->name,
            .has_arg = spec->kind == VALUE_FLAG ? no_argument : required_argument,
            .val = 256 + table->count,
        };
        table->specs[table->count] = spec;
    }
    table->options[table->count] = (struct option){0};
}

static bool table_has(const struct option_table *table, const char *name)
{
    for (int i = 0; i < table->count; i++) {
        if (strcmp(table->specs[i]->name, name) == 0)
            return true;
    }
    return false;
}

static const struct value_spec *common_option(const char *name)
{
    const struct value_spec *spec = cli_common_options;
    while (strcmp(spec->name, name) != 0)
        spec++;
    return spec;
}

static int take_options(struct cli *cli, const struct option_table *table, const char *letters, int argc, char **argv,
                        struct error *err)
{
    int r = 0, c;
    opterr = 0;
    while (r == 0 && (c = getopt_long(argc, argv, letters, table->options, NULL)) != -1) {
        const char *word = optind > 0 && optind <= argc ? argv[optind - 1] : "";
        if (c == 'o')
            r = keep_value(cli, common_option("output"), optarg, true, err);
        else if (c == 'h')
            cli->help = true;
        else if (c == 'y' && table_has(table, "yes"))
            r = json_object_set_new(cli->options, "yes", json_true());
        else if (c >= 256)
            r = keep_value(cli, table->specs[c - 256], optarg ? optarg : "", true, err);
        else if (c == ':')
            r = error_set(err, EINVAL, "'%s' needs a value", word);
        else
            r = error_set(err, EINVAL, "unknown option '%s'", word);
    }
    return r;
}

static int take_timeout(struct cli *cli, struct error *err)
{
    const char *text = cli_option(cli, "timeout");
    cli->timeout_ms = -1;
    if (!text)
        return 0;
    char *end;
    double seconds = strtod(text, &end);
    if (end == text || *end || !(seconds >= 0) || seconds > TIMEOUT_SECONDS_MAX)
        return error_set(err, EINVAL, "--timeout: '%s' is not a number of seconds", text);
    cli->timeout_ms = (int)(seconds * 1000);
    return 0;
}

/* What the common options mean, once all have been read. */
static int take_common(struct cli *cli, struct error *err)
{
    const char *output = cli_option(cli, "output"), *progress = cli_option(cli, "progress");
    const char *socket = cli_option(cli, "socket");
    if (output && strcmp(output, "json") == 0)
        cli->output = OUTPUT_JSON;
    else if (output && strcmp(output, "name") == 0)
        cli->output = OUTPUT_NAME;
    if (progress)
        cli->progress = strcmp(progress, "bar") == 0     ? PROGRESS_BAR
                        : strcmp(progress, "jsonl") == 0 ? PROGRESS_JSONL
                        : strcmp(progress, "none") == 0  ? PROGRESS_NONE
                                                         : PROGRESS_AUTO;
    if (!socket)
        socket = getenv("PLATTER_SOCKET");
    cli->socket = socket && socket[0] ? socket : CLIENT_SOCKET_DEFAULT;
    cli->wait = !cli_flag(cli, "no-wait");
    cli->help = cli->help || cli_flag(cli, "help");
    return take_timeout(cli, err);
}

/* ---- arguments ---- */

/* All words of an argument that repeats, as an array among the options. Returns how many. */
static int take_repeated(struct cli *cli, const struct value_spec *spec, int count, char **words, struct error *err)
{
    json_t *array = json_array();
    int r = json_object_set_new(cli->options, spec->name, array) < 0 ? -ENOMEM : 0;
    for (int i = 0; r == 0 && i < count; i++) {
        json_t *value = value_parse(spec, spec->name, words[i], err);
        if (!value)
            return -EINVAL;
        r = json_array_append_new(array, value) < 0 ? -ENOMEM : 0;
    }
    return r < 0 ? error_set(err, -r, "out of memory") : count;
}

static int take_arguments(struct cli *cli, int argc, char **argv, struct error *err)
{
    const struct command *command = cli->command;
    int given = 0;
    for (int i = 0; i < COMMAND_ARGUMENTS_MAX && command->arguments[i].name; i++, given++) {
        const struct value_spec *spec = &command->arguments[i];
        if (given >= argc) {
            if (!spec->optional)
                return error_set(err, EINVAL, "%s is missing", spec->name);
            break;
        }
        int r = keep_value(cli, spec, argv[given], false, err);
        if (r < 0)
            return r;
        cli->arguments[i] = argv[given];
        if (spec->repeat) {
            r = take_repeated(cli, spec, argc - given, argv + given, err);
            if (r < 0)
                return r;
            given += r;
            break;
        }
    }
    if (given < argc)
        return error_set(err, EINVAL, "unexpected argument '%s'", argv[given]);
    for (const struct value_spec *spec = command->options; spec && spec->name; spec++) {
        if (spec->required && !json_object_get(cli->options, spec->name))
            return error_set(err, EINVAL, "--%s is missing", spec->name);
    }
    return 0;
}

/* Finds the command that words[0] and words[1] name; returns how many words that took. */
static int find_command(struct cli *cli, int count, char **words, struct error *err)
{
    const char *noun = words[0], *verb = count > 1 ? words[1] : NULL;
    cli->command = command_find(noun, NULL);
    if (cli->command)
        return 1;
    if (!command_noun_has_verbs(noun))
        return error_set(err, EINVAL, "there is no command '%s'", noun);
    if (!verb)
        return error_set(err, EINVAL, "'%s' needs a verb", noun);
    cli->command = command_find(noun, verb);
    if (!cli->command)
        return error_set(err, EINVAL, "there is no command '%s %s'", noun, verb);
    return 2;
}

int cli_parse(struct cli *cli, int argc, char **argv, struct error *err)
{
    *cli = (struct cli){.timeout_ms = -1, .wait = true, .options = json_object(), .body = json_object()};
    if (!cli->options || !cli->body)
        return error_set(err, ENOMEM, "out of memory");
    struct option_table table = {0};
    table_add(&table, cli_common_options);
    optind = 0; /* the full reset of glibc's getopt */
    int r = take_options(cli, &table, "+:o:h", argc, argv, err);
    if (r < 0)
        return r;
    argc -= optind;
    argv += optind;
    if (argc == 0)
        return take_common(cli, err);
    if (argc > 1 && command_noun_has_verbs(argv[0]) && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        cli->help = true;
        return 0;
    }
    int words = find_command(cli, argc, argv, err);
    if (words < 0)
        return words;

    /* getopt skips argv[0], so the last word of the command stands for the program's name. */
    argc -= words - 1;
    argv += words - 1;
    table_add(&table, cli->command->options);
    optind = 0;
    r = take_options(cli, &table, ":o:hy", argc, argv, err);
    if (r == 0)
        r = take_common(cli, err);
    if (r == 0 && !cli->help)
        r = take_arguments(cli, argc - optind, argv + optind, err);
    return r;
}

void cli_clear(struct cli *cli)
{
    json_decref(cli->options);
    json_decref(cli->body);
    cli->client = client_destroy(cli->client);
    cli->options = cli->body = NULL;
}

const char *cli_option(const struct cli *cli, const char *name)
{
    return json_string_value(json_object_get(cli->options, name));
}

bool cli_flag(const struct cli *cli, const char *name)
{
    return json_is_true(json_object_get(cli->options, name));
}
