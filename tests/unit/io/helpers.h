/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the tests of backends/io: scratch files, and operations that a test waits for. */
#ifndef PLATTER_TESTS_UNIT_IO_HELPERS_H
#define PLATTER_TESTS_UNIT_IO_HELPERS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "backends/io/io.h"

/* One operation and what became of it. */
struct waited {
    struct io_op op; /* first */
    struct iovec iov[8];
    int result;
    unsigned calls;
};

/* An unlinked scratch file in `directory` (NULL = the build's temporary place, on a real file system). */
int scratch_fd(const char *directory);
struct io_file *scratch_file(const char *directory, bool buffered);

/* The engine that a test's state names. */
struct io_loop *loop_new(void **state, unsigned depth);

void waited_init(struct waited *w, enum io_kind kind, struct io_file *file, uint64_t offset, uint64_t length);
void waited_buffer(struct waited *w, void *buffer, size_t length);
/* Turn until `w` is done; the result. */
int waited_run(struct io_loop *loop, struct waited *w);
void waited_wait(struct io_loop *loop, struct waited *w);

int op_read(struct io_loop *loop, struct io_file *file, void *buffer, size_t length, uint64_t offset);
int op_write(struct io_loop *loop, struct io_file *file, const void *buffer, size_t length, uint64_t offset);

void pattern(uint8_t *buffer, size_t length, uint32_t seed);
bool all_zero(const uint8_t *buffer, size_t length);

/* Run `tests` for both engines (or the one that PLATTER_IO_ENGINE names). */
int run_on_engines(const struct CMUnitTest *tests, size_t count);
#define RUN_ON_ENGINES(tests) run_on_engines((tests), sizeof(tests) / sizeof((tests)[0]))

#endif
