// SPDX-License-Identifier: Apache-2.0
#include "helpers.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static enum io_engine engine;

int scratch_fd(const char *directory)
{
    char path[512];
    const char *base = directory ? directory : getenv("TMPDIR");
    (void)snprintf(path, sizeof(path), "%s/platter-io-XXXXXX", base ? base : "/tmp");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(unlink(path), 0);
    return fd;
}

struct io_file *scratch_file(const char *directory, bool buffered)
{
    struct io_file_options options = {.writable = true, .buffered = buffered};
    struct io_file *file = NULL;
    struct error err = ERROR_INIT;
    if (io_file_open(scratch_fd(directory), &options, &file, &err) < 0)
        fail_msg("%s", err.message);
    return file;
}

struct io_loop *loop_new(void **state, unsigned depth)
{
    struct io_loop_options options = {.engine = engine, .depth = depth};
    struct io_loop *loop = NULL;
    struct error err = ERROR_INIT;
    (void)state;
    if (io_loop_create(&options, &loop, &err) < 0)
        fail_msg("%s", err.message);
    assert_int_equal(io_loop_engine(loop), engine);
    return loop;
}

static void waited_done(struct io_op *op, int result)
{
    struct waited *w = (struct waited *)op;
    w->result = result;
    w->calls++;
}

void waited_init(struct waited *w, enum io_kind kind, struct io_file *file, uint64_t offset, uint64_t length)
{
    memset(w, 0, sizeof(*w));
    w->op = (struct io_op){.kind = kind, .file = file, .offset = offset, .length = length, .done = waited_done};
    w->op.iov = w->iov;
}

void waited_buffer(struct waited *w, void *buffer, size_t length)
{
    w->iov[w->op.iovcnt++] = (struct iovec){buffer, length};
}

void waited_wait(struct io_loop *loop, struct waited *w)
{
    for (int i = 0; w->calls == 0; i++) {
        assert_true(io_loop_turn(loop, 10000) >= 0);
        assert_true(i < 100000);
    }
}

int waited_run(struct io_loop *loop, struct waited *w)
{
    w->calls = 0;
    io_submit(loop, &w->op);
    assert_int_equal(w->calls, 0);
    waited_wait(loop, w);
    assert_int_equal(w->calls, 1);
    return w->result;
}

int op_read(struct io_loop *loop, struct io_file *file, void *buffer, size_t length, uint64_t offset)
{
    struct waited w;
    waited_init(&w, IO_READ, file, offset, length);
    waited_buffer(&w, buffer, length);
    return waited_run(loop, &w);
}

int op_write(struct io_loop *loop, struct io_file *file, const void *buffer, size_t length, uint64_t offset)
{
    struct waited w;
    waited_init(&w, IO_WRITE, file, offset, length);
    waited_buffer(&w, (void *)(uintptr_t)buffer, length);
    return waited_run(loop, &w);
}

void pattern(uint8_t *buffer, size_t length, uint32_t seed)
{
    uint32_t x = seed * 2654435761u + 1;
    for (size_t i = 0; i < length; i++) {
        x = x * 1664525u + 1013904223u;
        buffer[i] = (uint8_t)(x >> 24) | 1;
    }
}

bool all_zero(const uint8_t *buffer, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (buffer[i])
            return false;
    }
    return true;
}

int run_on_engines(const struct CMUnitTest *tests, size_t count)
{
    static const char *names[] = {"uring", "threads"};
    static const enum io_engine engines[] = {IO_ENGINE_URING, IO_ENGINE_THREADS};
    const char *only = getenv("PLATTER_IO_ENGINE");
    int failed = 0;
    for (int i = 0; i < 2; i++) {
        if (only && strcmp(only, names[i]) != 0)
            continue;
        engine = engines[i];
        struct io_loop *loop = NULL;
        struct io_loop_options options = {.engine = engine};
        if (io_loop_create(&options, &loop, NULL) < 0) {
            printf("engine %s: not on this host, skipped\n", names[i]);
            continue;
        }
        (void)io_loop_destroy(loop);
        printf("engine %s\n", names[i]);
        failed += _cmocka_run_group_tests(names[i], tests, count, NULL, NULL);
    }
    return failed;
}
