// SPDX-License-Identifier: Apache-2.0
/* What an L1 or L2 entry uses, and what of it cannot be (the specification, "L1 table entry", "L2 table entry"). */
#include "backends/format/qcow2/check.h"
#include "common/checked.h"

#define STANDARD_RESERVED UINT64_C(0x3f000000000001fe) /* bits 1-8 and 56-61 */

static bool table_over(uint64_t offset, const struct qcow2 *q, uint64_t table, uint64_t length)
{
    return length > 0 && ranges_overlap(offset, q->cluster_size, table, length);
}

uint64_t check_l1_judge(const struct check *c, uint64_t word)
{
    const struct qcow2 *q = c->q;
    uint64_t offset = word & QCOW2_OFFSET_MASK;
    if (!offset || !is_aligned(offset, q->cluster_size) || !range_within(offset, q->cluster_size, c->end) ||
        table_over(offset, q, q->header.l1_offset, (uint64_t)q->header.l1_size * 8) ||
        table_over(offset, q, q->header.snapshots_offset, q->header.snapshots_length))
        return 0;
    return word & (QCOW2_OFFSET_MASK | QCOW2_COPIED);
}

static void judge_compressed(const struct check *c, uint64_t word, uint64_t bitmap, struct check_entry *e)
{
    const struct qcow2 *q = c->q;
    unsigned shift = 62 - (q->cluster_bits - 8);
    uint64_t sectors = ((word & ~(QCOW2_COPIED | QCOW2_COMPRESSED)) >> shift) + 1;
    e->offset = word & ((UINT64_C(1) << shift) - 1);
    e->length = sectors * 512 - e->offset % 512;
    e->bad = bitmap;
    if (e->offset < q->cluster_size || !range_within(e->offset, e->length, c->end)) {
        e->bad = true;
        return;
    }
    e->kind = CHECK_COMPRESSED;
    e->words[0] = word;
}

static void judge_standard(const struct check *c, uint64_t word, uint64_t bitmap, struct check_entry *e)
{
    const struct qcow2 *q = c->q;
    bool extended = q->entry_size == 16;
    uint64_t clean = word & ~STANDARD_RESERVED;
    if (extended || q->header.version < 3)
        clean &= ~QCOW2_ZERO;
    uint64_t offset = clean & QCOW2_OFFSET_MASK;
    if (offset && (!is_aligned(offset, q->cluster_size) || !range_within(offset, q->cluster_size, c->end))) {
        clean &= ~(QCOW2_OFFSET_MASK | QCOW2_COPIED);
        offset = 0;
    }
    e->words[0] = clean;
    if (extended) {
        uint64_t data = offset ? bitmap & UINT32_MAX : 0;
        uint64_t zero = bitmap >> 32;
        e->words[1] = (zero & ~data) << 32 | data; /* both: the data may be what somebody looks for */
    }
    e->bad = clean != word || e->words[1] != bitmap;
    if (!offset)
        return;
    e->kind = CHECK_STANDARD;
    e->offset = offset;
    e->length = q->cluster_size;
}

void check_entry_judge(const struct check *c, uint64_t word, uint64_t bitmap, struct check_entry *ret_entry)
{
    *ret_entry = (struct check_entry){0};
    if (word & QCOW2_COMPRESSED)
        judge_compressed(c, word, bitmap, ret_entry);
    else
        judge_standard(c, word, bitmap, ret_entry);
}
