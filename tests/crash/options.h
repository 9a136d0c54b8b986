/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line that the three programs share:
 *
 *   [VARIANT] [--plant NAME] [--json]
 *   --format raw|qcow2 [--cluster-size BYTES] [--version N] [--refcount-bits N] [--extended-l2] [--parent]
 *
 * A shape of the caller's takes the place of the built-in variants. Images are small, so clusters of more than
 * 64 KiB are tried as such of 64 KiB.
 */
#ifndef PLATTER_TESTS_CRASH_OPTIONS_H
#define PLATTER_TESTS_CRASH_OPTIONS_H

#include "load.h"

struct options {
    const char *name;            /* VARIANT, NULL = none given */
    const struct variant *shape; /* what --format and its companions describe, NULL = none given */
    bool json;                   /* progress and the result as JSON lines on standard output */
};

/* False after a message: wrong usage. */
bool options_parse(int argc, char **argv, struct options *ret_options);

#endif
