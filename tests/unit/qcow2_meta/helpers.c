// SPDX-License-Identifier: Apache-2.0
#include "helpers.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"

bool have_qemu_img(void)
{
    char line[256];
    if (command_output(line, sizeof(line), "qemu-img --version") == 0)
        return true;
    (void)fprintf(stderr, "skipped: qemu-img is not installed\n");
    return false;
}

static void make_in(const char *directory, char *path, size_t size)
{
    (void)snprintf(path, size, "%s/platter-meta-XXXXXX", directory);
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    (void)close(fd);
}

void scratch_make(char *path, size_t size)
{
    const char *directory = getenv("TMPDIR");
    make_in(directory ? directory : "/tmp", path, size);
}

void scratch_make_in_memory(char *path, size_t size)
{
    if (access("/dev/shm", W_OK) == 0)
        make_in("/dev/shm", path, size);
    else
        scratch_make(path, size);
}

void scratch_remove(const char *path)
{
    (void)unlink(path);
}

struct io_file *file_open(const char *path)
{
    struct io_file *file = NULL;
    struct io_file_options options = {.writable = true};
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(io_file_open(fd, &options, &file, NULL), 0);
    return file;
}

int create(const char *path, const struct image_create_options *options, struct error *err)
{
    struct io_file *file = file_open(path);
    int r = image_create(file, "qcow2", options, err);
    (void)io_file_close(file);
    return r;
}

struct image *open_image(const char *path, bool read_only, struct error *err, int *ret_result)
{
    struct image *image = NULL;
    struct image_layer layer = {.format = "qcow2", .file = file_open(path)};
    struct image_options options = {.read_only = read_only};
    int r = image_open(&layer, 1, &options, &image, err);
    if (r < 0)
        (void)io_file_close(layer.file);
    if (ret_result)
        *ret_result = r;
    return r < 0 ? NULL : image;
}

struct qcow2 *image_qcow2(struct image *image)
{
    assert_true(image->layers[0]->ops == &qcow2_layer_ops);
    return (struct qcow2 *)image->layers[0];
}

int command_output(char *buffer, size_t size, const char *fmt, ...)
{
    char command[1024];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(command, sizeof(command), fmt, args);
    va_end(args);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    size_t length = fread(buffer, 1, size - 1, pipe);
    buffer[length] = 0;
    int status = pclose(pipe);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int qemu_check(const char *path)
{
    char text[4096];
    int status = command_output(text, sizeof(text), "qemu-img check '%s' 2>&1", path);
    if (status != 0 && status != 3)
        (void)fprintf(stderr, "qemu-img check: %d\n%s\n", status, text);
    return status;
}

void poke(const char *path, uint64_t offset, const void *bytes, size_t length)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, length, (off_t)offset), length);
    (void)close(fd);
}

void poke_be64(const char *path, uint64_t offset, uint64_t value)
{
    uint8_t bytes[8];
    store_be64(bytes, value);
    poke(path, offset, bytes, sizeof(bytes));
}

uint64_t peek_be64(const char *path, uint64_t offset)
{
    uint8_t bytes[8] = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_true(pread(fd, bytes, sizeof(bytes), (off_t)offset) >= 0);
    (void)close(fd);
    return load_be64(bytes);
}

struct taker {
    struct alloc_waiter waiter;
    bool woken;
};

static void taker_woken(struct io_task *task)
{
    struct taker *taker = (struct taker *)((char *)task - offsetof(struct taker, waiter.task));
    taker->woken = true;
}

int take_wait(struct qcow2 *q, struct io_loop *loop, uint64_t want, uint64_t *ret_offset, uint64_t *ret_count)
{
    struct taker taker = {.waiter = {.task.run = taker_woken, .loop = loop}};
    for (;;) {
        int r = allocator_take(q->allocator, want, ret_offset, ret_count, &taker.waiter);
        if (r != -EAGAIN)
            return r;
        while (!taker.woken)
            assert_true(io_loop_turn(loop, -1) >= 0);
        taker.woken = false;
    }
}

void settle(struct qcow2 *q)
{
    for (bool busy = true; busy;) {
        (void)pthread_mutex_lock(&q->allocator->lock);
        busy = q->allocator->refilling || q->allocator->releasing || q->allocator->growing;
        (void)pthread_mutex_unlock(&q->allocator->lock);
        if (busy)
            (void)usleep(200);
    }
}
