// SPDX-License-Identifier: Apache-2.0
/*
 * The qcow2 header: from bytes to struct header (the specification, "Header" and "Header extensions"). Pure functions of
 * a buffer. What depends on the file or on our abilities: header_check.c; back to bytes: header_write.c.
 */
#include "backends/format/qcow2/header.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "common/cleanup.h"

#define MAGIC 0x514649fbu
#define V2_LENGTH 72u
#define V3_LENGTH_MIN 104u
#define KNOWN_LENGTH 112u /* with the compression type and its padding */
#define EXTENSIONS_MAX 64u

static int corrupt(struct error *err, const char *what)
{
    (void)error_set(err, EUCLEAN, "qcow2 header: %s", what);
    return error_code(err, "corrupt-image");
}

/* ---- fixed fields -------------------------------------------------------------------------------------------- */

static void parse_v2_fields(const uint8_t *b, struct header *h)
{
    h->version = load_be32(b + 4);
    h->cluster_bits = load_be32(b + 20);
    h->size = load_be64(b + 24);
    h->crypt_method = load_be32(b + 32);
    h->l1_size = load_be32(b + 36);
    h->l1_offset = load_be64(b + 40);
    h->refcount_table_offset = load_be64(b + 48);
    h->refcount_table_clusters = load_be32(b + 56);
    h->nb_snapshots = load_be32(b + 60);
    h->snapshots_offset = load_be64(b + 64);
    h->refcount_order = 4;
    h->header_length = V2_LENGTH;
}

static int parse_v3_fields(const uint8_t *b, size_t cluster_size, struct header *h, struct error *err)
{
    h->incompatible = load_be64(b + 72);
    h->compatible = load_be64(b + 80);
    h->autoclear = load_be64(b + 88);
    h->refcount_order = load_be32(b + 96);
    h->header_length = load_be32(b + 100);
    if (h->header_length < V3_LENGTH_MIN || h->header_length % 8 || h->header_length > cluster_size)
        return corrupt(err, "the header length is out of bounds");
    if (h->refcount_order > 6)
        return corrupt(err, "reference counts wider than 64 bits");
    if (h->header_length > V3_LENGTH_MIN)
        h->compression = b[104];
    bool flagged = h->incompatible & QCOW2_INCOMPATIBLE_COMPRESSION;
    if (flagged != (h->compression != QCOW2_COMPRESSION_ZLIB))
        return corrupt(err, "the compression type does not agree with its feature bit");
    if (h->header_length > KNOWN_LENGTH) {
        h->extra_length = h->header_length - KNOWN_LENGTH;
        h->extra = malloc(h->extra_length);
        if (!h->extra)
            return error_sys(err, ENOMEM, "qcow2 header");
        memcpy(h->extra, b + KNOWN_LENGTH, h->extra_length);
    }
    return 0;
}

static int parse_backing(const uint8_t *b, size_t cluster_size, struct header *h, uint64_t *ret_extensions_end,
                         struct error *err)
{
    uint64_t offset = load_be64(b + 8);
    uint32_t size = load_be32(b + 16);
    *ret_extensions_end = cluster_size;
    if (offset == 0)
        return 0;
    if (offset < h->header_length || offset > cluster_size)
        return corrupt(err, "the backing file name is not in the first cluster");
    *ret_extensions_end = offset;
    if (size == 0)
        return 0;
    if (size > QCOW2_BACKING_NAME_MAX || !range_within(offset, size, cluster_size))
        return corrupt(err, "the backing file name is out of bounds");
    if (memchr(b + offset, 0, size))
        return corrupt(err, "the backing file name has a zero byte");
    memcpy(h->backing, b + offset, size);
    return 0;
}

/* ---- extensions ---------------------------------------------------------------------------------------------- */

static int check_bitmaps(const uint8_t *data, size_t length, const struct header *h, struct error *err)
{
    if (length != 24)
        return corrupt(err, "the bitmaps extension has a wrong length");
    if (load_be32(data) == 0 || load_be32(data + 4) != 0 || load_be64(data + 8) == 0)
        return corrupt(err, "the bitmaps extension has no bitmaps or reserved bits set");
    if (!is_aligned(load_be64(data + 16), UINT64_C(1) << h->cluster_bits))
        return corrupt(err, "the bitmap directory is not aligned");
    return 0;
}

static int parse_extension(uint32_t type, const uint8_t *data, size_t length, struct header *h, struct error *err)
{
    switch (type) {
    case QCOW2_EXTENSION_BACKING_FORMAT:
        if (length >= sizeof(h->backing_format) || memchr(data, 0, length))
            return corrupt(err, "the backing format's name is out of bounds");
        memcpy(h->backing_format, data, length);
        return 0;
    case QCOW2_EXTENSION_FEATURE_NAMES:
        return length % 48 ? corrupt(err, "the feature name table has a wrong length") : 0;
    case QCOW2_EXTENSION_BITMAPS:
        return check_bitmaps(data, length, h, err);
    case QCOW2_EXTENSION_ENCRYPTION:
        if (h->crypt_method != 2 || length != 16)
            return corrupt(err, "the encryption header pointer is out of place");
        return 0;
    default:
        return 0;
    }
}

/* Walks [header_length, end). Stops at the end mark, or where no other extension fits. */
static int parse_extensions(const uint8_t *b, uint64_t end, struct header *h, struct error *err)
{
    uint32_t seen[EXTENSIONS_MAX];
    unsigned count = 0;
    uint64_t at = h->header_length;
    while (at + 8 <= end) {
        uint32_t type = load_be32(b + at);
        uint64_t length = load_be32(b + at + 4);
        if (type == QCOW2_EXTENSION_END)
            break;
        if (!range_within(at + 8, length, end))
            return corrupt(err, "an extension is longer than its space");
        for (unsigned i = 0; i < count; i++)
            if (seen[i] == type)
                return corrupt(err, "an extension is there twice");
        if (count == EXTENSIONS_MAX)
            return corrupt(err, "too many extensions");
        seen[count++] = type;
        int r = parse_extension(type, b + at + 8, length, h, err);
        if (r < 0)
            return r;
        at = MIN(at + 8 + align_up(length, 8), end);
    }
    h->extensions_length = at - h->header_length;
    if (h->extensions_length == 0)
        return 0;
    h->extensions = malloc(h->extensions_length);
    if (!h->extensions)
        return error_sys(err, ENOMEM, "qcow2 header");
    memcpy(h->extensions, b + h->header_length, h->extensions_length);
    return 0;
}

const uint8_t *header_extension(const struct header *h, uint32_t type, size_t *ret_length)
{
    uint64_t at = 0;
    while (at + 8 <= h->extensions_length) {
        uint64_t length = load_be32(h->extensions + at + 4);
        if (!range_within(at + 8, length, h->extensions_length))
            return NULL;
        if (load_be32(h->extensions + at) == type) {
            *ret_length = length;
            return h->extensions + at + 8;
        }
        at += 8 + align_up(length, 8);
    }
    return NULL;
}

/* ---- all of it ----------------------------------------------------------------------------------------------- */

static int parse(const uint8_t *buffer, size_t length, struct header *h, struct error *err)
{
    if (length < V2_LENGTH || load_be32(buffer) != MAGIC)
        return corrupt(err, "not a qcow2 image");
    parse_v2_fields(buffer, h);
    if (h->version != 2 && h->version != 3) {
        (void)error_set(err, EOPNOTSUPP, "qcow2 version %u is not supported", h->version);
        return error_code(err, "unsupported-feature");
    }
    if (h->cluster_bits < 9 || h->cluster_bits > 21)
        return corrupt(err, "the cluster size is out of bounds");
    size_t cluster_size = (size_t)1 << h->cluster_bits;
    if (length < cluster_size)
        return -EAGAIN;
    int r = h->version == 3 ? parse_v3_fields(buffer, cluster_size, h, err) : 0;
    if (r < 0)
        return r;
    uint64_t extensions_end = 0;
    r = parse_backing(buffer, cluster_size, h, &extensions_end, err);
    return r < 0 ? r : parse_extensions(buffer, extensions_end, h, err);
}

int header_parse(const uint8_t *buffer, size_t length, struct header *ret_header, struct error *err)
{
    struct header h = {0};
    struct error own = ERROR_INIT; /* the code words need one even where the caller does not */
    int r = parse(buffer, length, &h, err ? err : &own);
    if (r < 0) {
        header_release(&h);
        return r;
    }
    *ret_header = h;
    return 0;
}

void header_release(struct header *h)
{
    free(steal_ptr(&h->extensions));
    free(steal_ptr(&h->extra));
}

int header_read(struct io_file *file, struct header *ret_header, uint64_t *ret_file_length, struct error *err)
{
    uint64_t file_length = 0;
    int r = io_file_length(file, &file_length);
    if (r < 0)
        return error_sys(err, r, "length of the image file");
    if (file_length < V2_LENGTH)
        return corrupt(err, "not a qcow2 image");
    for (size_t length = 4096;; length = (size_t)2 << 20) {
        CLEANUP_FREE uint8_t *buffer = aligned_alloc(4096, length);
        if (!buffer)
            return error_sys(err, ENOMEM, "qcow2 header");
        r = io_file_read(file, buffer, length, 0);
        if (r < 0)
            return error_sys(err, r, "read the qcow2 header");
        r = header_parse(buffer, length, ret_header, err);
        if (r == -EAGAIN)
            continue;
        if (r == 0)
            *ret_file_length = file_length;
        return r;
    }
}
