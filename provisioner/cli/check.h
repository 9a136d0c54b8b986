/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PLATTER_CLI_CHECK_H
#define PLATTER_CLI_CHECK_H

#include "provisioner/cli/command.h"

/* What `platter volume check` runs. Errors that remain are -EIO (exit code 1) after the counters were printed. */
int volume_check(struct cli *cli, struct error *err);

#endif
