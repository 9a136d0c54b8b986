// SPDX-License-Identifier: Apache-2.0
#include "options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plant.h"

#define KIB UINT64_C(1024)
#define CLUSTER_MOST (64 * KIB)
#define CLUSTER_SMALL KIB /* of this size and below, a table covers little */

static struct variant shape = {.version = 3, .cluster_size = CLUSTER_MOST};
static char shape_name[160];

static bool take_number(const char *text, uint32_t *ret)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (end == text || *end || value > UINT32_MAX)
        return false;
    *ret = (uint32_t)value;
    return true;
}

/* The sizes of an image that is small and has some tables, and the options that describe it. */
static bool finish_shape(bool parent)
{
    bool raw = strcmp(shape.format, "raw") == 0;
    bool small = !raw && shape.cluster_size <= CLUSTER_SMALL;
    if (raw) {
        shape = (struct variant){.format = "raw", .size = 256 * KIB};
        (void)snprintf(shape_name, sizeof(shape_name), "--format raw");
        shape.name = shape_name;
        return !parent;
    }
    if (strcmp(shape.format, "qcow2") != 0 || shape.cluster_size < 512 ||
        (shape.cluster_size & (shape.cluster_size - 1)) != 0 || (shape.version != 2 && shape.version != 3))
        return false;
    if (shape.cluster_size > CLUSTER_MOST)
        shape.cluster_size = CLUSTER_MOST;
    shape.size = small ? 192 * KIB : 512 * KIB;
    shape.below = !parent ? 0 : small ? 160 * KIB : 384 * KIB;
    (void)snprintf(shape_name, sizeof(shape_name),
                   "--format qcow2 --cluster-size %u --version %u --refcount-bits %u%s%s", shape.cluster_size,
                   shape.version, shape.refcount_bits, shape.extended_l2 ? " --extended-l2" : "",
                   parent ? " --parent" : "");
    shape.name = shape_name;
    return true;
}

bool options_parse(int argc, char **argv, struct options *o)
{
    static const struct option table[] = {
        {"plant", required_argument, NULL, 'p'},
        {"json", no_argument, NULL, 'j'},
        {"format", required_argument, NULL, 'f'},
        {"cluster-size", required_argument, NULL, 'c'},
        {"version", required_argument, NULL, 'v'},
        {"refcount-bits", required_argument, NULL, 'r'},
        {"extended-l2", no_argument, NULL, 'e'},
        {"parent", no_argument, NULL, 'b'},
        {NULL, 0, NULL, 0},
    };
    bool good = true, parent = false;
    *o = (struct options){0};
    for (int c; good && (c = getopt_long(argc, argv, "", table, NULL)) != -1;) {
        if (c == 'p')
            good = plant_choose(optarg);
        else if (c == 'j')
            o->json = true;
        else if (c == 'f')
            shape.format = optarg;
        else if (c == 'e')
            shape.extended_l2 = true;
        else if (c == 'b')
            parent = true;
        else
            good = c != '?' && take_number(optarg, c == 'c'   ? &shape.cluster_size
                                                   : c == 'v' ? &shape.version
                                                              : &shape.refcount_bits);
    }
    if (good && optind < argc)
        o->name = argv[optind++];
    if (good && shape.format) {
        good = !o->name && finish_shape(parent);
        o->shape = &shape;
    }
    if (good && optind == argc)
        return true;
    (void)fprintf(stderr,
                  "usage: %s [VARIANT] [--plant NAME] [--json]\n       or instead of VARIANT: --format raw|qcow2 "
                  "[--cluster-size N] [--version N] [--refcount-bits N] [--extended-l2] [--parent]\n",
                  argv[0]);
    return false;
}
