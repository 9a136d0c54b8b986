/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PLATTER_CLI_CHANGED_H
#define PLATTER_CLI_CHANGED_H

#include "provisioner/cli/command.h"

/* Prints ranges as they come, page by page; as JSON one object a line. */
int snapshot_changed(struct cli *cli, struct error *err);

#endif
