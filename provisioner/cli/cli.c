// SPDX-License-Identifier: Apache-2.0
/* From the command line to the exit code: the command's table, errors as people read them. */
#include <errno.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "provisioner/cli/command.h"
#include "provisioner/cli/nouns.h"
#include "provisioner/cli/output.h"

const struct command *const command_groups[] = {
    pool_commands, volume_commands, snapshot_commands, use_commands,  attachment_commands,
    job_commands,  event_commands,  bench_commands,    self_commands, NULL,
};

const struct command *command_find(const char *noun, const char *verb)
{
    for (const struct command *const *group = command_groups; *group; group++) {
        for (const struct command *command = *group; command->noun; command++) {
            if (strcmp(command->noun, noun) != 0 || !command->verb != !verb)
                continue;
            if (!verb || strcmp(command->verb, verb) == 0)
                return command;
        }
    }
    return NULL;
}

bool command_noun_has_verbs(const char *noun)
{
    for (const struct command *const *group = command_groups; *group; group++) {
        for (const struct command *command = *group; command->noun; command++) {
            if (command->verb && strcmp(command->noun, noun) == 0)
                return true;
        }
    }
    return false;
}

enum exit_code cli_exit_code(const struct error *err)
{
    if (strcmp(err->code, CLIENT_UNREACHABLE) == 0)
        return EXIT_CODE_UNREACHABLE;
    if (strcmp(err->code, CLI_USAGE) == 0)
        return EXIT_CODE_USAGE;
    switch (err->errnum) {
    case 0:
        return EXIT_CODE_OK;
    case ENOENT:
        return EXIT_CODE_NOT_FOUND;
    case EEXIST:
        return EXIT_CODE_EXISTS;
    case EBUSY:
        return EXIT_CODE_IN_USE;
    case ENOSPC:
    case EDQUOT:
        return EXIT_CODE_NO_SPACE;
    case EINVAL:
    case ERANGE:
    case ENAMETOOLONG:
    case EOPNOTSUPP:
    case EBADMSG:
    case EUCLEAN:
        return EXIT_CODE_REFUSED;
    case EACCES:
    case EPERM:
        return EXIT_CODE_PERMISSION;
    case ETIMEDOUT:
        return EXIT_CODE_TIMEOUT;
    default:
        return EXIT_CODE_FAILED;
    }
}

/* "platter: MESSAGE: held by HOLDER; try: HINT" on standard error. */
static void report(const struct error *err)
{
    (void)fputs("platter: ", stderr);
    output_text(stderr, err->message);
    if (err->holder[0] && !strstr(err->message, err->holder)) {
        (void)fputs(": held by ", stderr);
        output_text(stderr, err->holder);
    }
    if (err->hint[0]) {
        (void)fputs("; try: ", stderr);
        output_text(stderr, err->hint);
    }
    (void)fputc('\n', stderr);
}

static int usage(const struct cli *cli, struct error *err)
{
    if (cli->command)
        (void)error_hint(err, "platter help %s%s%s", cli->command->noun, cli->command->verb ? " " : "",
                         cli->command->verb ? cli->command->verb : "");
    else
        (void)error_hint(err, "platter help");
    report(err);
    return EXIT_CODE_USAGE;
}

static int run(struct cli *cli, int argc, char **argv)
{
    struct error err = ERROR_INIT;
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        (void)puts("platter " PLATTER_VERSION);
        return EXIT_CODE_OK;
    }
    if (cli_parse(cli, argc, argv, &err) < 0)
        return usage(cli, &err);
    if (cli->help && cli->command) {
        help_print_command(cli->command);
        return EXIT_CODE_OK;
    }
    if (!cli->command) {
        help_print_all();
        return cli->help ? EXIT_CODE_OK : EXIT_CODE_USAGE;
    }
    int r = cli->command->run(cli, &err);
    if (r == 0 && (fflush(stdout) != 0 || ferror(stdout)))
        r = error_sys(&err, errno ? errno : EIO, "standard output");
    if (r < 0) {
        if (!err.errnum)
            (void)error_sys(&err, r, "failed");
        (void)fflush(stdout);
        if (cli_exit_code(&err) == EXIT_CODE_USAGE)
            return usage(cli, &err);
        report(&err);
        return cli_exit_code(&err);
    }
    return EXIT_CODE_OK;
}

int cli_main(int argc, char **argv)
{
    (void)setlocale(LC_CTYPE, "");
    if (argc > 1 && strcmp(argv[1], "__complete") == 0)
        return completion_candidates(argc - 2, argv + 2);
    struct cli cli = {0};
    int code = run(&cli, argc, argv);
    cli_clear(&cli);
    return code;
}
