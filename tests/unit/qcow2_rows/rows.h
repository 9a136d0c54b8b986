/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the tests that each stand for a bug that another block layer had (docs/testing.md has the list). */
#ifndef PLATTER_TESTS_UNIT_QCOW2_ROWS_ROWS_H
#define PLATTER_TESTS_UNIT_QCOW2_ROWS_ROWS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "backends/format/core.h"
#include "backends/format/qcow2/qcow2.h"
#include "backends/io/seam.h"

#define SKIP 77
#define CLUSTER UINT64_C(65536)

/* One image in a scratch directory, open or not, with one loop and one queue of its own. */
struct rig {
    char directory[64];
    char path[128], below[128], copy[128];
    bool overlay; /* open `path` over the raw file `below` */
    size_t cache_bytes;
    struct io_seam *seam; /* before the image's file from before it is opened */
    struct io_loop *loop;
    struct image *image;
    struct image_queue *queue;
    struct qcow2 *q;
};

bool have_qemu_img(void);
int rig_setup(void **state);
/* In memory, where there is such a place. */
int rig_setup_in_memory(void **state);
int rig_teardown(void **state);

struct io_file *rig_file(const char *path);
/* Options like image_create's; the overlay's raw file is `size` bytes of 0xbb. */
void rig_create(struct rig *rig, const struct image_create_options *options);
/* -errno where it cannot be opened. `err` may be NULL. */
int rig_try_open(struct rig *rig, bool read_only, struct error *err);
void rig_open(struct rig *rig);
/* What image_close says. */
int rig_close(struct rig *rig);
/* Close, and demand a clean image of qemu-img. */
void rig_close_clean(struct rig *rig);

/* One request, to its end; writes are `byte` everywhere. */
int rig_io(struct rig *rig, enum image_op op, uint64_t offset, uint64_t length, int byte);
void rig_write(struct rig *rig, uint64_t offset, uint64_t length, int byte);
void rig_discard(struct rig *rig, uint64_t offset, uint64_t length);
void rig_flush(struct rig *rig);
void rig_expect(struct rig *rig, uint64_t offset, uint64_t length, int byte);
int rig_resize(struct rig *rig, uint64_t size);
/* The file as it is now, as after a crash of the process, to rig->copy. */
void rig_copy(struct rig *rig);
/* Wait until no job of the allocator is with its threads. */
void rig_settle(struct rig *rig);

/* Exit status of `qemu-img check`: 0 clean, 3 leaks only, 2 errors. */
int qemu_check(const char *path);
/* Runs a shell command; its exit status, its output (both streams) in `ret_text`, at most size - 1 bytes. */
int command(char *ret_text, size_t size, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void command_or_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

uint64_t peek_be64(const char *path, uint64_t offset);
void poke_be64(const char *path, uint64_t offset, uint64_t value);
void poke(const char *path, uint64_t offset, const void *bytes, size_t length);
void peek(const char *path, uint64_t offset, void *bytes, size_t length);
uint64_t file_size(const char *path);
uint64_t file_space(const char *path);
/* Where the L2 entry of guest `offset` is, standard entries. */
uint64_t l2_entry_place(const char *path, uint64_t offset);

#endif
