/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the tests of the qcow2 control side: scratch images, judging by qemu-img, a client of the allocator. */
#ifndef PLATTER_TESTS_UNIT_QCOW2_META_HELPERS_H
#define PLATTER_TESTS_UNIT_QCOW2_META_HELPERS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "backends/format/core.h"
#include "backends/format/qcow2/allocator.h"
#include "backends/format/qcow2/qcow2.h"
#include "backends/format/qcow2/refcount.h"
#include "backends/format/qcow2/reserve.h"
#include "backends/io/seam.h"

#define SKIP 77

/* True when qemu-img is installed; says so if not. */
bool have_qemu_img(void);

/* A path for one scratch image in the temporary place; removed by scratch_remove. */
void scratch_make(char *path, size_t size);
/* Likewise in memory where there is such a place: for tests that would do nothing but wait for flushes. */
void scratch_make_in_memory(char *path, size_t size);
void scratch_remove(const char *path);

struct io_file *file_open(const char *path);
/* image_create at `path`; 0 or -errno. */
int create(const char *path, const struct image_create_options *options, struct error *err);
/* image_open of one layer; NULL with *ret_result. */
struct image *open_image(const char *path, bool read_only, struct error *err, int *ret_result);
struct qcow2 *image_qcow2(struct image *image);

/* Exit status of `qemu-img check`: 0 clean, 3 leaks only, 2 errors. Prints what it says unless it is clean. */
int qemu_check(const char *path);
/* Standard output of a shell command, at most size - 1 bytes; its exit status. */
int command_output(char *buffer, size_t size, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Overwrite bytes of the file by hand. */
void poke(const char *path, uint64_t offset, const void *bytes, size_t length);
void poke_be64(const char *path, uint64_t offset, uint64_t value);
uint64_t peek_be64(const char *path, uint64_t offset);

/* allocator_take on `loop`, waiting for refills. */
int take_wait(struct qcow2 *q, struct io_loop *loop, uint64_t want, uint64_t *ret_offset, uint64_t *ret_count);
/* Wait until no job of the allocator is with its threads. */
void settle(struct qcow2 *q);

#endif
