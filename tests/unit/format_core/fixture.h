/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the tests of the format core: raw images in scratch files, loops in threads, requests that a test waits for. */
#ifndef PLATTER_TESTS_UNIT_FORMAT_CORE_FIXTURE_H
#define PLATTER_TESTS_UNIT_FORMAT_CORE_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "backends/format/image.h"
#include "backends/io/seam.h"

struct io_file *scratch_file(const char *directory, uint64_t size, bool buffered);
/* A raw image of `size` bytes. */
struct image *raw_image(const char *directory, uint64_t size, bool buffered);
void image_done(struct image *image);

/* One thread's loop and queue, for tests that wait for each request. */
struct client {
    struct io_loop *loop;
    struct image_queue *queue;
};
void client_open(struct client *client, struct image *image);
void client_close(struct client *client);
int client_request(struct client *client, struct image_request *request);
int client_op(struct client *client, enum image_op op, uint32_t flags, uint64_t offset, void *buffer, uint64_t length);

uint8_t *aligned(size_t size);

/* A seam that counts, and fails when told. */
struct counting {
    struct io_seam seam; /* first */
    _Atomic unsigned writes, flushes;
    _Atomic int fail_flush, fail_write;
};

/* An image behind it. */
struct image *counted_image(struct counting *counting, uint64_t size);

/* One of several requests in flight. */
struct many {
    struct image_request request; /* first */
    _Atomic unsigned *left;
    int result;
};

void many_done(struct image_request *request, int result);

/* Run `tests` once for each engine, by PLATTER_IO_ENGINE unless the caller set it. */
int run_on_engines(const struct CMUnitTest *tests, size_t count);
#define RUN_ON_ENGINES(tests) run_on_engines((tests), sizeof(tests) / sizeof((tests)[0]))

#endif
