// SPDX-License-Identifier: Apache-2.0
/* What a qcow2 image says of itself: the header only, and also of images that this layer would not open. */
#include <stdio.h>
#include <string.h>

#include "backends/format/qcow2/control.h"
#include "common/cleanup.h"

int qcow2_probe(struct io_file *file, struct image_info *ret_info, struct error *err)
{
    CLEANUP(header_release) struct header h = {0};
    uint64_t file_length = 0;
    int r = header_read(file, &h, &file_length, err);
    if (r < 0)
        return r;
    struct image_info info = {
        .size = h.size,
        .cluster_size = UINT32_C(1) << h.cluster_bits,
        .version = h.version,
        .refcount_bits = UINT32_C(1) << h.refcount_order,
        .extended_l2 = h.incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2,
        .dirty = h.incompatible & QCOW2_INCOMPATIBLE_DIRTY,
        .corrupt = h.incompatible & QCOW2_INCOMPATIBLE_CORRUPT,
        .encrypted = h.crypt_method != 0,
        .external_data = h.incompatible & QCOW2_INCOMPATIBLE_EXTERNAL_DATA,
        .snapshots = h.nb_snapshots,
    };
    static const char *const names[] = {"zlib", "zstd"};
    const char *compression = h.compression < 2 ? names[h.compression] : "unknown";
    (void)snprintf(info.compression, sizeof(info.compression), "%s", compression);
    (void)snprintf(info.backing, sizeof(info.backing), "%s", h.backing);
    (void)snprintf(info.backing_format, sizeof(info.backing_format), "%s", h.backing_format);
    size_t length = 0;
    const uint8_t *note = header_extension(&h, QCOW2_EXTENSION_NOTE, &length);
    if (note && length <= IMAGE_NOTE_MAX && !memchr(note, 0, length))
        memcpy(info.note, note, length);
    *ret_info = info;
    return 0;
}
