/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the pools: does a directory's file system share blocks between files? */
#ifndef PLATTER_BACKENDS_POOL_REFLINK_H
#define PLATTER_BACKENDS_POOL_REFLINK_H

#include <stdbool.h>

#include "common/error.h"

/* Tried once for each directory that `dir` is open on; any thread. An error (no space, say) is not kept. */
int reflink_probe(int dir, bool *ret_possible, struct error *err);

#endif
