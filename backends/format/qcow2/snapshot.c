// SPDX-License-Identifier: Apache-2.0
/* Internal snapshots: a walk over their table that trusts none of its lengths. */
#include "backends/format/qcow2/snapshot.h"

#include <errno.h>

#include "common/bytes.h"
#include "common/checked.h"

#define FIXED_LENGTH 40u
#define EXTRA_MAX 1024u
#define TABLE_MAX (64 * MIB)

static int corrupt(struct error *err, uint32_t index, const char *what)
{
    (void)error_set(err, EUCLEAN, "snapshot %u: %s", index, what);
    return error_code(err, "corrupt-image");
}

static int parse_entry(struct qcow2 *q, uint32_t index, const uint8_t *b, struct snapshot *ret_snapshot,
                       uint64_t *ret_length, struct error *err)
{
    struct snapshot snapshot = {.l1_offset = load_be64(b), .l1_size = load_be32(b + 8)};
    uint64_t id = load_be16(b + 12);
    uint64_t name = load_be16(b + 14);
    uint64_t extra = load_be32(b + 36);
    uint64_t l1_bytes = (uint64_t)snapshot.l1_size * 8;
    if (extra > EXTRA_MAX)
        return corrupt(err, index, "the extra data is too long");
    if (l1_bytes > QCOW2_L1_MAX_BYTES)
        return corrupt(err, index, "the L1 table is too large");
    if (l1_bytes > 0 && (!is_aligned(snapshot.l1_offset, q->cluster_size) || snapshot.l1_offset < q->cluster_size ||
                         !range_within(snapshot.l1_offset, l1_bytes, q->file_length_at_open)))
        return corrupt(err, index, "the L1 table is not inside the file");
    *ret_snapshot = snapshot;
    *ret_length = align_up(FIXED_LENGTH + extra + id + name, 8);
    return 0;
}

int snapshots_walk(struct qcow2 *q, int (*each)(void *context, const struct snapshot *snapshot), void *context,
                   uint64_t *ret_length, struct error *err)
{
    uint64_t at = 0;
    for (uint32_t i = 0; i < q->header.nb_snapshots; i++) {
        _Alignas(8) uint8_t entry[FIXED_LENGTH];
        struct snapshot snapshot;
        uint64_t length = 0;
        if (!range_within(q->header.snapshots_offset + at, FIXED_LENGTH, q->file_length_at_open))
            return corrupt(err, i, "the table leaves the file");
        int r = io_file_read(q->base.file, entry, sizeof(entry), q->header.snapshots_offset + at);
        if (r < 0)
            return error_sys(err, r, "read the snapshot table");
        r = parse_entry(q, i, entry, &snapshot, &length, err);
        if (r < 0)
            return r;
        at += length;
        if (at > TABLE_MAX || !range_within(q->header.snapshots_offset, at, align_up(q->file_length_at_open, 8)))
            return corrupt(err, i, "the table leaves the file");
        r = each ? each(context, &snapshot) : 0;
        if (r < 0)
            return error_sys(err, r, "snapshot %u", i);
    }
    *ret_length = at;
    return 0;
}
