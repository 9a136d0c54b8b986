/* SPDX-License-Identifier: Apache-2.0 */
/* The qcow2 header and its extensions: pure parsing, validation and serialising (the specification, "Header"). */
#ifndef PLATTER_FORMAT_QCOW2_HEADER_H
#define PLATTER_FORMAT_QCOW2_HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backends/io/io.h"
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

enum {
    QCOW2_EXTENSION_END = 0,
    QCOW2_EXTENSION_BACKING_FORMAT = 0xe2792aca,
    QCOW2_EXTENSION_FEATURE_NAMES = 0x6803f857,
    QCOW2_EXTENSION_BITMAPS = 0x23852875,
    QCOW2_EXTENSION_ENCRYPTION = 0x0537be77,
    QCOW2_EXTENSION_DATA_FILE = 0x44415441,
    QCOW2_EXTENSION_NOTE = 0x706c6e74, /* ours, "plnt": a text; others skip it */
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
    uint64_t snapshots_length; /* bytes of the snapshot table, known once its entries were read (snapshot.h) */
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

/* Read the header of `file`: header_parse on its first cluster. Control thread, blocks. The file must not be larger than
 * 2^63. ret_file_length in bytes. */
int header_read(struct io_file *file, struct header *ret_header, uint64_t *ret_file_length, struct error *err);
/* Pure: `length` bytes from the start of the file. Checks that the header is well formed in itself, and nothing that
 * depends on the file or on what we support: good for describing an image. Code "corrupt-image", or
 * "unsupported-feature" for another version. -EAGAIN (no error set) when the first cluster has more than `length`
 * bytes. */
int header_parse(const uint8_t *buffer, size_t length, struct header *ret_header, struct error *err);
/* Refuse what this layer does not implement: unknown incompatible features (named from the image's own table),
 * encryption, external data files. Code "unsupported-feature". */
int header_check_features(const struct header *header, struct error *err);
/* Every table inside a file of `file_length` bytes, aligned, large enough, not over another. Code "corrupt-image". */
int header_validate(const struct header *header, uint64_t file_length, struct error *err);
/* The same without the refcount table, which can be made anew from the others. */
int header_validate_tables(const struct header *header, uint64_t file_length, struct error *err);
/* Frees what it owns. */
void header_release(struct header *header);

/* Lay a new header out in `buffer` (one cluster, zeroed): fixed fields, extensions, backing name. -ENAMETOOLONG when
 * it does not fit the cluster. */
int header_serialise(const struct header *header, uint8_t *buffer, size_t length);
/* Write the fields that may change in an existing image (size, L1, refcount table, feature bits) in place, in one
 * sector; all else stays as it is, byte for byte. Not flushed. Any thread that may block, one at a time. */
int header_write(struct io_file *file, const struct header *header);

/* L1 entries that `size` bytes need. */
uint64_t header_l1_needed(const struct header *header, uint64_t size);
/* The extension of `type` (data without its 8-byte head), NULL when there is none. */
const uint8_t *header_extension(const struct header *header, uint32_t type, size_t *ret_length);

#endif
