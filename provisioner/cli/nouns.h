/* SPDX-License-Identifier: Apache-2.0 */
/* The tables of commands, one file each; every table ends at a NULL noun. */
#ifndef PLATTER_CLI_NOUNS_H
#define PLATTER_CLI_NOUNS_H

#include "provisioner/cli/command.h"

extern const struct command pool_commands[];
extern const struct command volume_commands[];
extern const struct command snapshot_commands[];
extern const struct command use_commands[]; /* mount, unmount, attach, detach */
extern const struct command attachment_commands[];
extern const struct command job_commands[];
extern const struct command event_commands[];
extern const struct command bench_commands[];
extern const struct command self_commands[]; /* version, completion, help, exit-codes */

/* An attachment, and on a table's side what a VM needs to use it. */
void attachment_print(const struct cli *cli, const json_t *attachment);

#endif
