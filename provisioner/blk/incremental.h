/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker's commands `changed`, `export_since` and `import_onto` (docs/architecture.md). Descriptors are taken over as
 * far as they were used; the rest stays in `fds`. Answers go into `answer`.
 *
 * An incremental file is a qcow2 image that holds what changed and nothing else: data, and zeros as zeros. It names its
 * base as its backing file, as a label for other tools that we never follow, and says in its note what it belongs to.
 */
#ifndef PLATTER_PROVISIONER_BLK_INCREMENTAL_H
#define PLATTER_PROVISIONER_BLK_INCREMENTAL_H

#include <jansson.h>

#include "provisioner/blk/convert.h"

int incremental_changed(const json_t *request, int *fds, size_t fd_count, struct convert_progress *progress,
                        json_t *answer, struct error *err);
int incremental_export(const json_t *request, int *fds, size_t fd_count, struct convert_progress *progress,
                       json_t *answer, struct error *err);
/* -EINVAL: codes "wrong-file" (another note than expected), "size-mismatch"; -EUCLEAN "damaged-file", "corrupt-image";
 * -EBUSY "changed-since": the image's upper layers hold something already. Nothing was written then. */
int incremental_import(const json_t *request, int *fds, size_t fd_count, struct convert_progress *progress,
                       json_t *answer, struct error *err);

#endif
