/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a command of `platter` is: a noun, a verb, its arguments and options as data, and the function that runs it.
 * Parsing, help, completion and the request's JSON body all come from this one description.
 *
 * Everything here runs in the main thread of a short-lived process.
 */
#ifndef PLATTER_CLI_COMMAND_H
#define PLATTER_CLI_COMMAND_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "common/client.h"
#include "common/error.h"

enum exit_code {
    EXIT_CODE_OK = 0,
    EXIT_CODE_FAILED = 1,
    EXIT_CODE_USAGE = 2,
    EXIT_CODE_NOT_FOUND = 3,
    EXIT_CODE_EXISTS = 4,
    EXIT_CODE_IN_USE = 5,
    EXIT_CODE_NO_SPACE = 6,
    EXIT_CODE_REFUSED = 7,
    EXIT_CODE_PERMISSION = 8,
    EXIT_CODE_UNREACHABLE = 9,
    EXIT_CODE_TIMEOUT = 10,
};

/* The code word of an error that is wrong usage, found after parsing. */
#define CLI_USAGE "usage"

/* What a value is: how it is checked, how it stands in the request, what completion offers. */
enum value_kind {
    VALUE_TEXT,
    VALUE_FLAG,   /* takes no value; true in the request */
    VALUE_SIZE,   /* "10G"; bytes in the request */
    VALUE_NUMBER, /* a whole number */
    VALUE_RATIO,  /* a positive decimal number */
    VALUE_CHOICE, /* one of `choices` */
    VALUE_FILE,   /* a path; made absolute */
    VALUE_POOL,
    VALUE_VOLUME,
    VALUE_SNAPSHOT, /* VOLUME@SNAPSHOT */
    VALUE_ATTACHMENT,
    VALUE_JOB,
};

struct value_spec {
    const char *name; /* option: long name; argument: as shown ("VOLUME") */
    enum value_kind kind;
    const char *member; /* of the request's body; NULL = the command reads it itself */
    const char *help;
    const char *choices; /* "qcow2|raw", or how the value is shown ("SIZE") */
    bool required;       /* options only: arguments are required unless `optional` */
    bool optional;       /* arguments only */
    bool repeat;         /* may be given more than once; of the arguments only the last */
};

#define COMMAND_ARGUMENTS_MAX 3

struct cli;

struct command {
    const char *noun;
    const char *verb; /* NULL: the noun alone ("mount") */
    const char *summary;
    struct value_spec arguments[COMMAND_ARGUMENTS_MAX]; /* ends at a NULL name */
    const struct value_spec *options;                   /* ends at a NULL name; may be NULL */
    /* 0 or -errno with `err` set; what it prints goes to standard output. */
    int (*run)(struct cli *cli, struct error *err);
};

enum output_format { OUTPUT_TABLE, OUTPUT_JSON, OUTPUT_NAME };
enum progress_form { PROGRESS_AUTO, PROGRESS_BAR, PROGRESS_JSONL, PROGRESS_NONE };

/* One run of the command. */
struct cli {
    const struct command *command;
    const char *socket;
    enum output_format output;
    enum progress_form progress;
    bool wait;
    int timeout_ms; /* -1 = none given */
    bool help;
    const char *arguments[COMMAND_ARGUMENTS_MAX];
    json_t *options; /* by long name: true, a string, or an array of strings (repeat; arguments, too, by their name) */
    json_t *body;    /* the members that arguments and options name */
    struct client *client;
};

/* Every command, in the order of the help. */
extern const struct command *const command_groups[];
const struct command *command_find(const char *noun, const char *verb);
bool command_noun_has_verbs(const char *noun);

/* Parse the words after the program's name into `cli`. -EINVAL with a message for wrong usage. */
int cli_parse(struct cli *cli, int argc, char **argv, struct error *err);
void cli_clear(struct cli *cli);
extern const struct value_spec cli_common_options[];

/* An option's text, or NULL; and whether it was given. */
const char *cli_option(const struct cli *cli, const char *name);
bool cli_flag(const struct cli *cli, const char *name);

/* The whole command: what main returns. */
int cli_main(int argc, char **argv);
enum exit_code cli_exit_code(const struct error *err);

/* The path as seen from the root: the caller frees. No file needs to exist. NULL with `err` set. */
char *cli_absolute_path(const char *path, struct error *err);

void help_print_all(void);
void help_print_command(const struct command *command);
int help_run(struct cli *cli, struct error *err);
int help_exit_codes_run(struct cli *cli, struct error *err);

/* Print what may follow `words` (the last one is being typed), one a line. */
int completion_candidates(int count, char **words);

#endif
