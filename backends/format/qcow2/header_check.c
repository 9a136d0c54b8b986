// SPDX-License-Identifier: Apache-2.0
/*
 * The qcow2 header against what this layer can do, and against the file that it stands in.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backends/format/qcow2/header.h"
#include "common/bytes.h"
#include "common/checked.h"

#define KNOWN_INCOMPATIBLE                                                                                             \
    (QCOW2_INCOMPATIBLE_DIRTY | QCOW2_INCOMPATIBLE_CORRUPT | QCOW2_INCOMPATIBLE_EXTERNAL_DATA |                        \
     QCOW2_INCOMPATIBLE_COMPRESSION | QCOW2_INCOMPATIBLE_EXTENDED_L2)

/* ---- features ------------------------------------------------------------------------------------------------ */

static int unsupported(struct error *err, const char *what)
{
    (void)error_set(err, EOPNOTSUPP, "the image needs %s, which is not supported", what);
    return error_code(err, "unsupported-feature");
}

/* The name that the image itself gives to incompatible bit `bit`, printable, or "bit N". */
static void feature_name(const struct header *h, unsigned bit, char *buffer, size_t size)
{
    size_t length = 0;
    const uint8_t *table = header_extension(h, QCOW2_EXTENSION_FEATURE_NAMES, &length);
    for (size_t at = 0; table && at + 48 <= length; at += 48) {
        char name[47] = "";
        if (table[at] != 0 || table[at + 1] != bit)
            continue;
        memcpy(name, table + at + 2, 46);
        for (char *c = name; *c; c++)
            if (*c < ' ' || *c > '~')
                *c = '?';
        if (name[0]) {
            (void)snprintf(buffer, size, "the feature '%s'", name);
            return;
        }
    }
    (void)snprintf(buffer, size, "the unknown feature of bit %u", bit);
}

int header_check_features(const struct header *h, struct error *err)
{
    uint64_t unknown = h->incompatible & ~(uint64_t)KNOWN_INCOMPATIBLE;
    if (unknown) {
        char name[80];
        feature_name(h, (unsigned)__builtin_ctzll(unknown), name, sizeof(name));
        return unsupported(err, name);
    }
    if (h->crypt_method)
        return unsupported(err, "encryption");
    if (h->incompatible & QCOW2_INCOMPATIBLE_EXTERNAL_DATA)
        return unsupported(err, "an external data file");
    if (h->compression > QCOW2_COMPRESSION_ZSTD)
        return unsupported(err, "an unknown compression type");
    return 0;
}

/* ---- the file ------------------------------------------------------------------------------------------------ */

static int corrupt(struct error *err, const char *what)
{
    (void)error_set(err, EUCLEAN, "qcow2 header: %s", what);
    return error_code(err, "corrupt-image");
}

uint64_t header_l1_needed(const struct header *h, uint64_t size)
{
    bool extended = h->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2;
    unsigned l2_bits = h->cluster_bits - (extended ? 4 : 3);
    return div_round_up(size, UINT64_C(1) << (h->cluster_bits + l2_bits));
}

/* A table of `length` bytes at `offset` lies behind the header, aligned and inside the file. */
static bool table_placed(const struct header *h, uint64_t offset, uint64_t length, uint64_t file_length)
{
    uint64_t cluster_size = UINT64_C(1) << h->cluster_bits;
    return is_aligned(offset, cluster_size) && offset >= cluster_size && (offset & ~QCOW2_OFFSET_MASK) == 0 &&
           range_within(offset, length, file_length);
}

static int check_l1(const struct header *h, uint64_t file_length, struct error *err)
{
    uint64_t bytes = (uint64_t)h->l1_size * 8;
    if (bytes > QCOW2_L1_MAX_BYTES)
        return corrupt(err, "the L1 table is too large");
    if (h->size > INT64_MAX || header_l1_needed(h, h->size) > h->l1_size)
        return corrupt(err, "the L1 table does not cover the image's size");
    if (bytes > 0 && !table_placed(h, h->l1_offset, bytes, file_length))
        return corrupt(err, "the L1 table is not inside the file");
    return 0;
}

static int check_refcount_table(const struct header *h, uint64_t file_length, struct error *err)
{
    uint64_t bytes = (uint64_t)h->refcount_table_clusters << h->cluster_bits;
    if (bytes == 0 || bytes > QCOW2_REFTABLE_MAX_BYTES)
        return corrupt(err, "the refcount table's size is out of bounds");
    if (!table_placed(h, h->refcount_table_offset, bytes, file_length))
        return corrupt(err, "the refcount table is not inside the file");
    if (h->l1_size && ranges_overlap(h->l1_offset, (uint64_t)h->l1_size * 8, h->refcount_table_offset, bytes))
        return corrupt(err, "the L1 table and the refcount table overlap");
    return 0;
}

int header_validate_tables(const struct header *h, uint64_t file_length, struct error *err)
{
    if ((h->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2) && h->cluster_bits < 14)
        return corrupt(err, "the clusters are too small for extended L2 entries");
    if (file_length > INT64_MAX)
        return corrupt(err, "the file is too large");
    int r = check_l1(h, file_length, err);
    if (r < 0 || h->nb_snapshots == 0)
        return r;
    if (h->nb_snapshots > QCOW2_SNAPSHOTS_MAX)
        return corrupt(err, "too many snapshots");
    /* 40 bytes: the least that an entry takes. */
    if (!table_placed(h, h->snapshots_offset, (uint64_t)h->nb_snapshots * 40, file_length))
        return corrupt(err, "the snapshot table is not inside the file");
    return 0;
}

int header_validate(const struct header *h, uint64_t file_length, struct error *err)
{
    int r = header_validate_tables(h, file_length, err);
    return r < 0 ? r : check_refcount_table(h, file_length, err);
}
