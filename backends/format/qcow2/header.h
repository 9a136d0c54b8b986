/* SPDX-License-Identifier: Apache-2.0 */
/* The qcow2 header and its extensions: pure parsing, validation and serialising (the specification, "Header"). */
#ifndef PLATTER_FORMAT_QCOW2_HEADER_H
#define PLATTER_FORMAT_QCOW2_HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

enum {
    QCOW2_INCOMPATIBLE_DIRTY = 1 << 0,
    QCOW2_INCOMPATIBLE_CORRUPT = 1 << 1,
    QCOW2_INCOMPATIBLE_EXTERNAL_DATA = 1 << 2,
    QCOW2_INCOMPATIBLE_COMPRESSION = 1 << 3,
    QCOW2_INCOMPATIBLE_EXTENDED_L2 = 1 << 4,
    QCOW2_COMPATIBLE_LAZY_REFCOUNTS = 1 << 0,
    QCOW2_AUTOCLEAR_BITMAPS = 1 << 0,
    QCOW2_AUTOCLEAR_RAW_EXTERNAL = 1 << 1,
};

enum qcow2_compression { QCOW2_COMPRESSION_ZLIB = 0, QCOW2_COMPRESSION_ZSTD = 1 };

#define QCOW2_L1_MAX_BYTES (32u << 20)
#define QCOW2_REFTABLE_MAX_BYTES (8u << 20)
#define QCOW2_SNAPSHOTS_MAX 65536u
#define QCOW2_BACKING_NAME_MAX 1023u

/* L1 and L2 entry fields ("L1 table entry", "L2 table entry"). */
#define QCOW2_OFFSET_MASK UINT64_C(0x00fffffffffffe00)
#define QCOW2_COPIED (UINT64_C(1) << 63)
#define QCOW2_COMPRESSED (UINT64_C(1) << 62)
#define QCOW2_ZERO (UINT64_C(1) << 0)

struct header {
    uint32_t version;
    uint32_t cluster_bits;
    uint64_t size;
    uint32_t crypt_method;
    uint32_t l1_size; /* entries */
    uint64_t l1_offset;
    uint64_t refcount_table_offset;
    uint32_t refcount_table_clusters;
    uint32_t nb_snapshots;
    uint64_t snapshots_offset;
    uint64_t incompatible, compatible, autoclear;
    uint32_t refcount_order;
    uint32_t header_length;
    uint8_t compression;                      /* enum qcow2_compression */
    char backing[QCOW2_BACKING_NAME_MAX + 1]; /* "" = none */
    char backing_format[32];                  /* from its extension, "" = not said */
    uint8_t *extensions;                      /* all extensions as found, without the end mark; owned */
    size_t extensions_length;
    uint8_t *extra; /* header bytes beyond those we know, owned; NULL = none */
    size_t extra_length;
};

#endif
