// SPDX-License-Identifier: Apache-2.0
/*
 * Making an image: [header][refcount table][refcount blocks][L1 table], the header last, so that a file left behind by a
 * crash is no image.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/format/qcow2/control.h"
#include "backends/format/qcow2/refcount.h"
#include "common/bytes.h"
#include "common/checked.h"
#include "common/cleanup.h"
#include "common/text.h"

#define CLUSTER_BITS_DEFAULT 16u
#define HEADER_LENGTH_V2 72u
#define HEADER_LENGTH_V3 112u

struct layout {
    uint64_t cluster_size;
    uint64_t table, blocks, l1; /* clusters of each */
};

static uint64_t layout_clusters(const struct layout *layout)
{
    return 1 + layout->table + layout->blocks + layout->l1;
}

/* ---- options ------------------------------------------------------------------------------------------------- */

static int invalid(struct error *err, const char *what)
{
    return error_set(err, EINVAL, "create a qcow2 image: %s", what);
}

static int choose_compression(const char *name, struct header *h, struct error *err)
{
    if (!name || strcmp(name, "zlib") == 0)
        return 0;
    if (strcmp(name, "zstd") != 0)
        return invalid(err, "the compression type must be zlib or zstd");
    h->compression = QCOW2_COMPRESSION_ZSTD;
    h->incompatible |= QCOW2_INCOMPATIBLE_COMPRESSION;
    return 0;
}

static int choose_backing(const struct image_create_options *o, struct header *h, struct error *err)
{
    if (!o->backing || !o->backing[0])
        return o->backing_format ? invalid(err, "a backing format without a backing name") : 0;
    if (strlen(o->backing) > QCOW2_BACKING_NAME_MAX)
        return invalid(err, "the backing name is too long");
    text_copy(h->backing, o->backing);
    if (!o->backing_format)
        return 0;
    if (strlen(o->backing_format) >= sizeof(h->backing_format))
        return invalid(err, "the backing format's name is too long");
    text_copy(h->backing_format, o->backing_format);
    return 0;
}

static int choose_features(const struct image_create_options *o, struct header *h, struct error *err)
{
    uint32_t cluster_size = o->cluster_size ? o->cluster_size : 1u << CLUSTER_BITS_DEFAULT;
    uint32_t refcount_bits = o->refcount_bits ? o->refcount_bits : 16;
    h->version = o->version ? o->version : 3;
    if (h->version != 2 && h->version != 3)
        return invalid(err, "the version must be 2 or 3");
    if (!is_power_of_two(cluster_size) || cluster_size < 512 || cluster_size > 2 * MIB)
        return invalid(err, "the cluster size must be a power of two from 512 to 2 MiB");
    if (!is_power_of_two(refcount_bits) || refcount_bits > 64)
        return invalid(err, "the width of reference counts must be 1, 2, 4, 8, 16, 32 or 64 bits");
    if (o->extended_l2 && cluster_size < 16 * KIB)
        return invalid(err, "extended L2 entries need clusters of at least 16 KiB");
    h->cluster_bits = (uint32_t)__builtin_ctz(cluster_size);
    h->refcount_order = (uint32_t)__builtin_ctz(refcount_bits);
    h->header_length = h->version == 2 ? HEADER_LENGTH_V2 : HEADER_LENGTH_V3;
    if (o->extended_l2)
        h->incompatible |= QCOW2_INCOMPATIBLE_EXTENDED_L2;
    int r = choose_compression(o->compression, h, err);
    if (r < 0)
        return r;
    if (h->version == 2 && (h->incompatible || refcount_bits != 16))
        return invalid(err, "version 2 has neither extended L2 entries, zstd, nor other than 16-bit reference counts");
    if (o->note && (h->version == 2 || strlen(o->note) > IMAGE_NOTE_MAX))
        return invalid(err, "the note is too long, or the version is 2");
    return choose_backing(o, h, err);
}

static int choose(const struct image_create_options *o, struct header *h, struct error *err)
{
    if (o->preallocate)
        return error_set(err, EOPNOTSUPP, "a qcow2 image cannot be preallocated");
    if (o->size % 512)
        return invalid(err, "the size must be a multiple of 512");
    int r = choose_features(o, h, err);
    if (r < 0)
        return r;
    h->size = o->size;
    uint64_t needed = o->size > INT64_MAX ? UINT64_MAX : header_l1_needed(h, o->size);
    if (needed > QCOW2_L1_MAX_BYTES / 8) {
        (void)error_set(err, EFBIG, "create a qcow2 image: %llu bytes are too many for clusters of %u bytes",
                        (unsigned long long)o->size, 1u << h->cluster_bits);
        return error_hint(err, "use a larger cluster size");
    }
    h->l1_size = (uint32_t)needed;
    return 0;
}

/* ---- extensions ---------------------------------------------------------------------------------------------- */

static void add_extension(struct header *h, uint32_t type, const void *data, size_t length)
{
    uint8_t *at = h->extensions + h->extensions_length;
    store_be32(at, type);
    store_be32(at + 4, (uint32_t)length);
    memcpy(at + 8, data, length);
    h->extensions_length += 8 + align_up(length, 8);
}

/* Names for the bits that this image may come to have, so that other tools can say what they miss. */
static void add_feature_names(struct header *h)
{
    static const struct {
        uint8_t kind, bit;
        const char *name;
    } features[] = {
        {0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
        {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
        {2, 0, "bitmaps"},          {2, 1, "raw external data"},
    };
    uint8_t table[ARRAY_SIZE(features) * 48] = {0};
    for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
        table[i * 48] = features[i].kind;
        table[i * 48 + 1] = features[i].bit;
        memcpy(table + i * 48 + 2, features[i].name, strlen(features[i].name));
    }
    add_extension(h, QCOW2_EXTENSION_FEATURE_NAMES, table, sizeof(table));
}

static int make_extensions(const char *note, struct header *h, struct error *err)
{
    h->extensions = calloc(1, 512 + IMAGE_NOTE_MAX + 16);
    if (!h->extensions)
        return error_sys(err, ENOMEM, "create a qcow2 image");
    if (h->backing_format[0])
        add_extension(h, QCOW2_EXTENSION_BACKING_FORMAT, h->backing_format, strlen(h->backing_format));
    /* The smallest clusters have no room for names and a backing name. */
    if (h->version == 3 && h->cluster_bits >= 12)
        add_feature_names(h);
    if (note && note[0])
        add_extension(h, QCOW2_EXTENSION_NOTE, note, strlen(note));
    return 0;
}

/* ---- layout and writing -------------------------------------------------------------------------------------- */

static struct layout plan(struct header *h)
{
    uint64_t cluster_size = UINT64_C(1) << h->cluster_bits;
    uint64_t block_entries = (cluster_size * 8) >> h->refcount_order;
    struct layout layout = {
        .cluster_size = cluster_size,
        .table = 1,
        .blocks = 1,
        .l1 = div_round_up((uint64_t)h->l1_size * 8, cluster_size),
    };
    /* They count themselves: both only grow. */
    for (;;) {
        uint64_t blocks = div_round_up(layout_clusters(&layout), block_entries);
        uint64_t table = div_round_up(blocks * 8, cluster_size);
        if (blocks <= layout.blocks && table <= layout.table)
            break;
        layout.blocks = MAX(blocks, layout.blocks);
        layout.table = MAX(table, layout.table);
    }
    h->refcount_table_offset = cluster_size;
    h->refcount_table_clusters = (uint32_t)layout.table;
    h->l1_offset = h->l1_size ? (1 + layout.table + layout.blocks) * cluster_size : 0;
    return layout;
}

/* Table and blocks lie one after the other: one write. */
static int write_refcounts(struct io_file *file, const struct header *h, const struct layout *layout)
{
    uint64_t table_bytes = layout->table * layout->cluster_size;
    uint64_t bytes = table_bytes + layout->blocks * layout->cluster_size;
    uint64_t block_entries = (layout->cluster_size * 8) >> h->refcount_order;
    CLEANUP_FREE uint8_t *buffer = aligned_alloc(4096, align_up(bytes, 4096));
    if (!buffer)
        return -ENOMEM;
    memset(buffer, 0, bytes);
    for (uint64_t i = 0; i < layout->blocks; i++)
        store_be64(buffer + i * 8, (1 + layout->table + i) * layout->cluster_size);
    for (uint64_t i = 0; i < layout_clusters(layout); i++) {
        uint8_t *block = buffer + table_bytes + i / block_entries * layout->cluster_size;
        refcount_entry_set(block, h->refcount_order, i % block_entries, 1);
    }
    return io_file_write(file, buffer, bytes, layout->cluster_size);
}

/* An empty file of the right length; all of it reads as zeros. */
static int make_room(struct io_file *file, uint64_t bytes)
{
    if (file->block_device)
        return io_file_zero(file, 0, bytes);
    int r = io_file_truncate(file, 0);
    return r < 0 ? r : io_file_truncate(file, bytes);
}

static int write_image(struct io_file *file, const struct header *h, const struct layout *layout)
{
    CLEANUP_FREE uint8_t *cluster = aligned_alloc(4096, align_up(layout->cluster_size, 4096));
    if (!cluster)
        return -ENOMEM;
    memset(cluster, 0, layout->cluster_size);
    int r = header_serialise(h, cluster, layout->cluster_size);
    if (r == 0)
        r = make_room(file, layout_clusters(layout) * layout->cluster_size);
    if (r == 0)
        r = write_refcounts(file, h, layout);
    if (r == 0)
        r = io_file_flush(file);
    if (r == 0)
        r = io_file_write(file, cluster, layout->cluster_size, 0);
    return r < 0 ? r : io_file_flush(file);
}

int qcow2_create(struct io_file *file, const struct image_create_options *options, struct error *err)
{
    CLEANUP(header_release) struct header h = {0};
    struct error own = ERROR_INIT; /* the hint needs one even where the caller does not */
    int r = choose(options, &h, err ? err : &own);
    if (r < 0)
        return r;
    r = make_extensions(options->note, &h, err);
    if (r < 0)
        return r;
    struct layout layout = plan(&h);
    if (file->direct && file->offset_align > layout.cluster_size)
        r = io_file_use_page_cache(file);
    if (r == 0)
        r = write_image(file, &h, &layout);
    if (r == -ENAMETOOLONG)
        return error_set(err, EINVAL,
                         "create a qcow2 image: the backing name or the note does not fit a cluster of %llu bytes",
                         (unsigned long long)layout.cluster_size);
    return r < 0 ? error_sys(err, r, "create a qcow2 image") : 0;
}
