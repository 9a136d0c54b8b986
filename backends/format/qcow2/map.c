// SPDX-License-Identifier: Apache-2.0
/* See map.h. The lookup of a mapped range runs on every request: it takes no lock and writes nothing shared. */
#include "backends/format/qcow2/map.h"

#include <endian.h>
#include <errno.h>

#include "backends/format/qcow2/data.h"
#include "common/checked.h"
#include "common/cleanup.h"

#define LOOKUP_TRIES 4u
/* Bits 1-8 and 56-61 of a standard entry. */
#define STANDARD_RESERVED UINT64_C(0x3f000000000001fe)

bool below_empty(const struct qcow2 *q, uint64_t offset)
{
    return !q->base.below || offset >= q->base.below->size;
}

uint64_t slice_key_of(const struct qcow2 *q, uint64_t offset)
{
    return offset >> (q->cluster_bits + q->data->slice_entry_bits);
}

uint32_t slice_index_of(const struct qcow2 *q, uint64_t offset)
{
    return (uint32_t)(offset >> q->cluster_bits) & (q->data->slice_entries - 1);
}

uint32_t sub_range(const struct qcow2 *q, uint64_t offset, uint64_t length)
{
    uint64_t in_cluster = offset & (q->cluster_size - 1);
    unsigned first = (unsigned)(in_cluster / q->subcluster_size);
    unsigned last = (unsigned)((in_cluster + length - 1) / q->subcluster_size);
    return (uint32_t)(((UINT64_C(1) << (last + 1)) - 1) & ~((UINT64_C(1) << first) - 1));
}

/* "Compressed Clusters Descriptor": x = 62 - (cluster_bits - 8) bits of offset, above them sectors - 1. */
static int decode_compressed(const struct qcow2 *q, uint64_t word, struct entry *ret)
{
    unsigned x = 62 - (q->cluster_bits - 8);
    uint64_t host = word & ((UINT64_C(1) << x) - 1);
    uint64_t sectors = ((word >> x) & ((UINT64_C(1) << (q->cluster_bits - 8)) - 1)) + 1;
    uint64_t length = sectors * 512 - (host & 511);
    if (!range_within(host, length, atomic_load_explicit(&q->data->file_end, memory_order_acquire)) ||
        host < q->cluster_size)
        return -EIO;
    *ret = (struct entry){.host = host, .compressed = (uint32_t)length};
    return 0;
}

int entry_decode(const struct qcow2 *q, uint64_t word, uint64_t bitmap, struct entry *ret)
{
    if (word & QCOW2_COMPRESSED)
        return decode_compressed(q, word, ret);
    if (word & STANDARD_RESERVED)
        return -EIO;
    struct entry entry = {.host = word & QCOW2_OFFSET_MASK, .copied = word & QCOW2_COPIED};
    if (q->data->sub_bits) {
        if (word & QCOW2_ZERO)
            return -EIO;
        entry.data = (uint32_t)bitmap;
        entry.zero = (uint32_t)(bitmap >> 32);
        if (entry.data & entry.zero)
            return -EIO;
    } else {
        entry.zero = word & QCOW2_ZERO ? 1 : 0;
        entry.data = entry.host && !entry.zero ? 1 : 0;
        if (entry.zero && q->header.version < 3)
            return -EIO;
    }
    if (!entry.host) {
        entry.copied = false;
        if (entry.data)
            return -EIO;
    } else if (!is_aligned(entry.host, q->cluster_size) ||
               !range_within(entry.host, q->cluster_size,
                             atomic_load_explicit(&q->data->file_end, memory_order_acquire))) {
        return -EIO;
    }
    *ret = entry;
    return 0;
}

void entry_encode(const struct qcow2 *q, const struct entry *entry, uint64_t ret_words[2])
{
    ret_words[0] = entry->host | (entry->host && entry->copied ? QCOW2_COPIED : 0);
    ret_words[1] = 0;
    if (q->data->sub_bits)
        ret_words[1] = (uint64_t)entry->zero << 32 | entry->data;
    else if (entry->zero)
        ret_words[0] |= QCOW2_ZERO;
}

int entry_load(const struct qcow2 *q, const struct slice *slice, uint32_t index, struct entry *ret)
{
    uint64_t word, bitmap = 0;
    if (q->data->sub_bits) {
        word = be64toh(slice_word(q->slices, slice, 2 * index));
        bitmap = be64toh(slice_word(q->slices, slice, 2 * index + 1));
    } else {
        word = be64toh(slice_word(q->slices, slice, index));
    }
    return entry_decode(q, word, bitmap, ret);
}

void entry_store(struct qcow2 *q, struct slice *slice, uint32_t index, const struct entry *entry)
{
    uint64_t words[2];
    entry_encode(q, entry, words);
    unsigned count = q->data->sub_bits ? 2 : 1;
    slice_store(q->slices, slice, index * count, words, count);
}

/* The run of equal subclusters in one cluster from `in_cluster` on. */
static void map_cluster(const struct qcow2 *q, const struct entry *entry, uint64_t in_cluster, struct mapping *ret)
{
    ret->copied = entry->copied;
    ret->compressed = entry->compressed;
    if (entry->compressed) {
        ret->kind = MAP_COMPRESSED;
        ret->host = entry->host;
        ret->length = q->cluster_size - in_cluster;
        return;
    }
    unsigned sub = (unsigned)(in_cluster / q->subcluster_size);
    uint32_t same;
    if (entry->data >> sub & 1) {
        ret->kind = MAP_DATA;
        same = entry->data;
    } else if (entry->zero >> sub & 1) {
        ret->kind = MAP_ZERO;
        same = entry->zero;
    } else {
        ret->kind = MAP_BELOW;
        same = ~(entry->data | entry->zero);
    }
    uint64_t others = (uint64_t)(~same & q->data->sub_mask) >> sub;
    unsigned subs = others ? (unsigned)__builtin_ctzll(others) : (1u << q->data->sub_bits) - sub;
    ret->length = (uint64_t)(sub + subs) * q->subcluster_size - in_cluster;
    ret->host = ret->kind == MAP_DATA ? entry->host + in_cluster : 0;
}

static bool continues(const struct mapping *run, const struct mapping *more, unsigned flags)
{
    if (run->kind != more->kind || ((flags & MAP_COPIED) && run->copied != more->copied))
        return false;
    if (flags & MAP_ANYWHERE)
        return true;
    return run->kind != MAP_COMPRESSED && (run->kind != MAP_DATA || run->host + run->length == more->host);
}

/* The run from `offset` within one slice. */
static int map_slice(const struct qcow2 *q, const struct slice *slice, uint64_t offset, uint64_t length, unsigned flags,
                     struct mapping *ret)
{
    struct entry entry;
    uint32_t index = slice_index_of(q, offset);
    int r = entry_load(q, slice, index, &entry);
    if (r < 0)
        return r;
    struct mapping run, more;
    map_cluster(q, &entry, offset & (q->cluster_size - 1), &run);
    while (run.length < length) {
        uint64_t in_cluster = (offset + run.length) & (q->cluster_size - 1);
        /* A corrupt entry fails the request when it is reached, not what lies before it. */
        if (!in_cluster && (++index == q->data->slice_entries || entry_load(q, slice, index, &entry) < 0))
            break;
        map_cluster(q, &entry, in_cluster, &more);
        if (!continues(&run, &more, flags))
            break;
        run.length += more.length;
    }
    run.length = MIN(run.length, length);
    *ret = run;
    return 0;
}

/* All of an absent L2 table, and the absent ones after it. */
static void map_no_table(const struct qcow2 *q, uint64_t offset, uint64_t length, struct mapping *ret)
{
    unsigned bits = q->cluster_bits + q->l2_bits;
    uint64_t l1_index = offset >> bits, end = (l1_index + 1) << bits;
    while (end - offset < length && ++l1_index < q->l1_entries &&
           !atomic_load_explicit(&q->l1[l1_index], memory_order_acquire))
        end += UINT64_C(1) << bits;
    *ret = (struct mapping){.kind = MAP_BELOW, .length = MIN(end - offset, length)};
}

int map_lookup(const struct qcow2 *q, uint64_t offset, uint64_t length, unsigned flags, struct mapping *ret)
{
    uint64_t key = slice_key_of(q, offset);
    for (unsigned i = 0; i < LOOKUP_TRIES; i++) {
        uint32_t sequence;
        const struct slice *slice = slice_find(q->slices, key, &sequence);
        if (!slice)
            break;
        int r = map_slice(q, slice, offset, length, flags, ret);
        if (slice_valid(slice, sequence))
            return r;
    }
    uint64_t l1_index = offset >> (q->cluster_bits + q->l2_bits);
    if (l1_index >= q->l1_entries)
        return -EIO;
    if (atomic_load_explicit(&q->l1[l1_index], memory_order_acquire))
        return -EAGAIN;
    map_no_table(q, offset, length, ret);
    return 0;
}

int map_wait(struct chunk *chunk, uint64_t offset, uint64_t length, unsigned flags, struct mapping *ret)
{
    struct qcow2 *q = chunk->queue->q;
    int r = map_lookup(q, offset, length, flags, ret);
    if (r != -EAGAIN)
        return r;
    LOCK_SCOPE(&q->lock);
    struct slice *slice;
    r = table_slice(chunk, offset, false, &slice);
    if (r == -ENOENT) {
        map_no_table(q, offset, length, ret);
        return 0;
    }
    return r ? r : map_slice(q, slice, offset, length, flags, ret);
}
