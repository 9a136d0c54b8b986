/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the tests of the qcow2 data path: images in a scratch directory, requests one at a time, qemu-img's word. */
#ifndef PLATTER_TESTS_UNIT_QCOW2_DATA_FIXTURE_H
#define PLATTER_TESTS_UNIT_QCOW2_DATA_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "backends/format/image.h"
#include "backends/io/seam.h"

/* A kind of image to be tried. */
struct kind {
    const char *name;
    uint64_t size;
    uint32_t cluster_size, version;
    bool extended_l2, overlay; /* over a raw file of `size` bytes, every byte 0xbb */
};

extern const struct kind kinds[];
extern const unsigned kinds_count;

/* A group's setup and teardown: the scratch directory. */
int scratch_begin(void **state);
int scratch_end(void **state);
/* A file's path there; the result lasts until the fourth call after. */
const char *scratch(const char *name);

struct io_file *file_open(const char *path, bool writable);
/* Make the image `path` and, for overlays, the file below it. */
void kind_create(const struct kind *kind, const char *path);
/* Open it; ret_file (may be NULL) is the top layer's. NULL when it cannot be opened. */
struct image *kind_open(const struct kind *kind, const char *path, bool read_only, struct io_seam *seam);

/* No errors, leaks allowed or not. Prints qemu-img's words otherwise. */
bool check_image(const char *path, bool leaks_allowed);

#endif
