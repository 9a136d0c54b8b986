/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PLATTER_CLI_CONFIRM_H
#define PLATTER_CLI_CONFIRM_H

#include "provisioner/cli/command.h"

/* Before a loss: on a terminal the user types `name`, unless --yes is given. Without a terminal nobody is asked.
 * -ECANCELED when something else is typed. */
int confirm(const struct cli *cli, const char *what, const char *name, struct error *err);

#endif
