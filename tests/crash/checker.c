// SPDX-License-Identifier: Apache-2.0
#include "checker.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OFFSET_BITS UINT64_C(0x00fffffffffffe00)
#define COPIED (UINT64_C(1) << 63)
#define COMPRESSED (UINT64_C(1) << 62)

struct view {
    struct checker *c;
    const uint8_t *image;
    uint64_t length, clusters;
    uint32_t version, bits, order;
    uint64_t cluster, l1_offset, l1_size, table_offset, table_clusters;
    bool extended;
};

static uint64_t be(const uint8_t *p, unsigned bytes)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < bytes; i++)
        v = v << 8 | p[i];
    return v;
}

__attribute__((format(printf, 2, 3))) static int bad(const struct view *v, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    (void)vsnprintf(v->c->error, sizeof(v->c->error), format, args);
    va_end(args);
    return -1;
}

#define ULL(x) ((unsigned long long)(x))

/* ---- the header ---- */

static int read_header(struct view *v)
{
    const uint8_t *h = v->image;
    if (v->length < 104 || memcmp(h, "QFI\xfb", 4) != 0)
        return bad(v, "no header");
    v->version = (uint32_t)be(h + 4, 4);
    v->bits = (uint32_t)be(h + 20, 4);
    v->c->size = be(h + 24, 8);
    v->l1_size = be(h + 36, 4);
    v->l1_offset = be(h + 40, 8);
    v->table_offset = be(h + 48, 8);
    v->table_clusters = be(h + 56, 4);
    v->order = v->version == 2 ? 4 : (uint32_t)be(h + 96, 4);
    uint64_t incompatible = v->version == 2 ? 0 : be(h + 72, 8);
    v->extended = incompatible & 16;
    if ((v->version != 2 && v->version != 3) || v->bits < 9 || v->bits > 21 || v->order > 6)
        return bad(v, "version %u, cluster bits %u, refcount order %u", v->version, v->bits, v->order);
    v->cluster = UINT64_C(1) << v->bits;
    if (incompatible & ~UINT64_C(16))
        return bad(v, "incompatible features 0x%llx", ULL(incompatible));
    if (be(h + 60, 4) || be(h + 32, 4))
        return bad(v, "snapshots or encryption");
    v->clusters = (v->length + v->cluster - 1) >> v->bits;
    if (v->l1_offset % v->cluster || v->l1_offset + v->l1_size * 8 > v->length || v->table_offset % v->cluster ||
        v->table_offset + v->table_clusters * v->cluster > v->length || !v->table_clusters || !v->table_offset)
        return bad(v, "tables outside of the file: L1 0x%llx + %llu, refcounts 0x%llx + %llu clusters",
                   ULL(v->l1_offset), ULL(v->l1_size), ULL(v->table_offset), ULL(v->table_clusters));
    if (v->c->size > v->c->content_room)
        return bad(v, "size %llu", ULL(v->c->size));
    uint64_t reach = v->cluster * (v->cluster / (v->extended ? 16 : 8));
    if (v->l1_size * reach < v->c->size)
        return bad(v, "an L1 table of %llu entries for %llu bytes", ULL(v->l1_size), ULL(v->c->size));
    return 0;
}

/* ---- counting ---- */

static int use(struct view *v, uint64_t offset, uint64_t clusters, const char *what)
{
    uint64_t first = offset >> v->bits;
    if (offset % v->cluster || first + clusters > v->clusters)
        return bad(v, "%s at 0x%llx is outside of the file (%llu bytes) or not aligned", what, ULL(offset),
                   ULL(v->length));
    for (uint64_t i = first; i < first + clusters; i++)
        if (v->c->uses[i]++)
            return bad(v, "%s at 0x%llx uses a cluster that has a use", what, ULL(i << v->bits));
    return 0;
}

static uint64_t count_of(const struct view *v, uint64_t cluster)
{
    uint64_t entries = (v->cluster * 8) >> v->order;
    uint64_t index = cluster / entries, at = cluster % entries;
    if (index >= v->table_clusters * v->cluster / 8)
        return 0;
    uint64_t block = be(v->image + v->table_offset + index * 8, 8);
    if (!block || block % v->cluster || block + v->cluster > v->length)
        return 0;
    const uint8_t *data = v->image + block;
    if (v->order >= 3)
        return be(data + (at << (v->order - 3)), 1u << (v->order - 3));
    unsigned width = 1u << v->order;
    return data[at * width / 8] >> (at * width % 8) & ((1u << width) - 1);
}

static int use_metadata(struct view *v)
{
    uint64_t l1_clusters = (v->l1_size * 8 + v->cluster - 1) >> v->bits;
    if (use(v, 0, 1, "the header") < 0 || use(v, v->l1_offset, l1_clusters, "the L1 table") < 0 ||
        use(v, v->table_offset, v->table_clusters, "the refcount table") < 0)
        return -1;
    for (uint64_t i = 0; i < v->table_clusters * v->cluster / 8; i++) {
        uint64_t block = be(v->image + v->table_offset + i * 8, 8);
        if (block && use(v, block, 1, "a refcount block") < 0)
            return -1;
    }
    return 0;
}

/* What an entry says of its copied flag must agree with the count, which must be 1. */
static int check_flag(const struct view *v, uint64_t entry, const char *what)
{
    uint64_t count = count_of(v, (entry & OFFSET_BITS) >> v->bits);
    if ((count == 1) == !!(entry & COPIED))
        return 0;
    return bad(v, "%s 0x%llx: count %llu", what, ULL(entry), ULL(count));
}

/* Counts of clusters beyond the end of the file. */
static void count_beyond(struct view *v)
{
    uint64_t entries = (v->cluster * 8) >> v->order;
    for (uint64_t i = v->clusters / entries; i < v->table_clusters * v->cluster / 8; i++) {
        uint64_t block = be(v->image + v->table_offset + i * 8, 8);
        uint64_t first = v->clusters > i * entries ? v->clusters - i * entries : 0;
        uint64_t at = (first << v->order) / 8;
        const uint8_t *data = v->image + block;
        if (!block || block + v->cluster > v->length ||
            (!data[at] && memcmp(data + at, data + at + 1, v->cluster - at - 1) == 0))
            continue;
        for (uint64_t cluster = i * entries + first; cluster < (i + 1) * entries; cluster++)
            v->c->leaks += count_of(v, cluster) != 0;
    }
}

static int compare_counts(struct view *v)
{
    for (uint64_t i = 0; i < v->clusters; i++) {
        uint64_t count = count_of(v, i);
        if (count < v->c->uses[i])
            return bad(v, "cluster at 0x%llx is used but its count is 0", ULL(i << v->bits));
        v->c->leaks += count > v->c->uses[i];
    }
    count_beyond(v);
    return 0;
}

/* ---- content ---- */

static void fill(struct view *v, uint64_t guest, uint64_t length, const uint8_t *from)
{
    struct checker *c = v->c;
    if (guest >= c->size)
        return;
    length = length < c->size - guest ? length : c->size - guest;
    if (from)
        memcpy(c->content + guest, from, length);
    else
        memset(c->content + guest, 0, length);
}

static void fill_below(struct view *v, uint64_t guest, uint64_t length)
{
    struct checker *c = v->c;
    uint64_t there = c->below && guest < c->below_size ? c->below_size - guest : 0;
    there = there < length ? there : length;
    if (there)
        fill(v, guest, there, c->below + guest);
    if (there < length)
        fill(v, guest + there, length - there, NULL);
}

/* A cluster's or subcluster's bytes; what lies beyond the end of the file are zeros. */
static void fill_host(struct view *v, uint64_t guest, uint64_t length, uint64_t host)
{
    uint64_t there = host < v->length ? v->length - host : 0;
    there = there < length ? there : length;
    if (there)
        fill(v, guest, there, v->image + host);
    if (there < length)
        fill(v, guest + there, length - there, NULL);
}

static int read_subclusters(struct view *v, uint64_t guest, uint64_t host, uint64_t bitmap)
{
    uint64_t part = v->cluster / 32;
    if (bitmap >> 32 & bitmap & UINT32_MAX)
        return bad(v, "guest 0x%llx: subclusters with data and zero (0x%llx)", ULL(guest), ULL(bitmap));
    if (!host && bitmap & UINT32_MAX)
        return bad(v, "guest 0x%llx: subclusters of no cluster", ULL(guest));
    for (unsigned i = 0; i < 32; i++) {
        if (bitmap >> i & 1)
            fill_host(v, guest + i * part, part, host + i * part);
        else if (bitmap >> (32 + i) & 1)
            fill(v, guest + i * part, part, NULL);
        else
            fill_below(v, guest + i * part, part);
    }
    return 0;
}

static int read_entry(struct view *v, uint64_t guest, const uint8_t *at)
{
    uint64_t entry = be(at, 8), host = entry & OFFSET_BITS;
    bool zero = entry & 1;
    if (entry & COMPRESSED || entry & ~(OFFSET_BITS | COPIED | 1) || (zero && (v->version == 2 || v->extended)))
        return bad(v, "guest 0x%llx: entry 0x%llx", ULL(guest), ULL(entry));
    if (host && (use(v, host, 1, "data") < 0 || check_flag(v, entry, "an L2 entry") < 0))
        return -1;
    if (v->extended)
        return read_subclusters(v, guest, host, be(at + 8, 8));
    if (zero)
        fill(v, guest, v->cluster, NULL);
    else if (host)
        fill_host(v, guest, v->cluster, host);
    else
        fill_below(v, guest, v->cluster);
    return 0;
}

static int read_tables(struct view *v)
{
    uint64_t width = v->extended ? 16 : 8, entries = v->cluster / width, guest = 0;
    for (uint64_t i = 0; i < v->l1_size; i++) {
        uint64_t entry = be(v->image + v->l1_offset + i * 8, 8), table = entry & OFFSET_BITS;
        if (entry & ~(OFFSET_BITS | COPIED))
            return bad(v, "L1 entry %llu: 0x%llx", ULL(i), ULL(entry));
        if (!table) {
            fill_below(v, guest, entries * v->cluster);
            guest += entries * v->cluster;
            continue;
        }
        if (use(v, table, 1, "an L2 table") < 0 || check_flag(v, entry, "an L1 entry") < 0)
            return -1;
        if (table + v->cluster > v->length)
            return bad(v, "an L2 table at 0x%llx ends outside of the file", ULL(table));
        for (uint64_t j = 0; j < entries; j++, guest += v->cluster)
            if (read_entry(v, guest, v->image + table + j * width) < 0)
                return -1;
    }
    return 0;
}

int checker_run(struct checker *c, const uint8_t *image, uint64_t length)
{
    struct view v = {.c = c, .image = image, .length = length};
    c->leaks = 0;
    c->error[0] = 0;
    if (read_header(&v) < 0)
        return -1;
    if (v.clusters > c->uses_room) {
        free(c->uses);
        c->uses_room = v.clusters * 2;
        c->uses = calloc(c->uses_room, sizeof(*c->uses));
        if (!c->uses)
            abort();
    }
    memset(c->uses, 0, v.clusters * sizeof(*c->uses));
    return use_metadata(&v) < 0 || read_tables(&v) < 0 || compare_counts(&v) < 0 ? -1 : 0;
}

void checker_destroy(struct checker *c)
{
    free(c->uses);
    c->uses = NULL;
    c->uses_room = 0;
}
