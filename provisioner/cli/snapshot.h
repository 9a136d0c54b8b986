/* SPDX-License-Identifier: Apache-2.0 */
/* What `platter volume` makes of snapshots. */
#ifndef PLATTER_CLI_SNAPSHOT_H
#define PLATTER_CLI_SNAPSHOT_H

#include "provisioner/cli/command.h"
#include "provisioner/cli/output.h"

int snapshot_clone(struct cli *cli, struct error *err);
int snapshot_restore(struct cli *cli, struct error *err);

/* How a volume is shown (volume.c). */
extern const struct column volume_details[];

#endif
