/* SPDX-License-Identifier: Apache-2.0 */
/* Internal snapshots: bounds of their table (the specification, "Snapshots"). We keep them, and neither make nor load
 * any. */
#ifndef PLATTER_FORMAT_QCOW2_SNAPSHOT_H
#define PLATTER_FORMAT_QCOW2_SNAPSHOT_H

#include "backends/format/qcow2/qcow2.h"

struct snapshot {
    uint64_t l1_offset; /* bytes, aligned, inside the file */
    uint32_t l1_size;   /* entries */
};

/* Walk the snapshot table of q->header, validated as it goes, calling `each` (may be NULL) until it returns less than 0.
 * ret_length: bytes of the table. Control thread, blocks. Code "corrupt-image". */
int snapshots_walk(struct qcow2 *q, int (*each)(void *context, const struct snapshot *snapshot), void *context,
                   uint64_t *ret_length, struct error *err);

#endif
