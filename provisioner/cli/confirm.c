// SPDX-License-Identifier: Apache-2.0
#include "provisioner/cli/confirm.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "provisioner/cli/output.h"

int confirm(const struct cli *cli, const char *what, const char *name, struct error *err)
{
    if (cli_flag(cli, "yes") || !isatty(STDIN_FILENO) || !isatty(STDERR_FILENO))
        return 0;
    output_text(stderr, what);
    (void)fputs("? Type its name to go on: ", stderr);
    (void)fflush(stderr);
    char line[512];
    if (!fgets(line, sizeof(line), stdin))
        line[0] = '\0';
    line[strcspn(line, "\n")] = '\0';
    if (strcmp(line, name) == 0)
        return 0;
    return error_set(err, ECANCELED, "nothing was changed");
}
