/* SPDX-License-Identifier: Apache-2.0 */
/* The exports of one server, by name, and the table of kinds. Control thread only. */
#ifndef PLATTER_PROVISIONER_BLK_EXPORTS_H
#define PLATTER_PROVISIONER_BLK_EXPORTS_H

#include <jansson.h>

#include "provisioner/blk/export.h"

#define EXPORTS_MAX 8
#define EXPORT_NAME_MAX 63

struct export_entry {
    char name[EXPORT_NAME_MAX + 1];
    struct export *export; /* NULL = free */
};

struct exports {
    struct export_entry entries[EXPORTS_MAX];
};

/* Start an export as `request` says (name, kind, queues, read_only, serial) on *fd, which is taken over (set to -1) on
 * success. -EEXIST for a name in use, -EOPNOTSUPP for an unknown kind. */
int exports_start(struct exports *exports, struct image *image, const json_t *request, int *fd, struct error *err);
int exports_stop(struct exports *exports, const char *name, struct error *err);
void exports_stop_all(struct exports *exports);
void exports_resized(struct exports *exports, uint64_t size);
/* [{name, kind}...], with counters if asked for. NULL = no memory. */
json_t *exports_describe(const struct exports *exports, bool with_stats);

#endif
