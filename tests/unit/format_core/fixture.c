// SPDX-License-Identifier: Apache-2.0
#include "fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct io_file *scratch_file(const char *directory, uint64_t size, bool buffered)
{
    char path[512];
    const char *base = directory ? directory : getenv("TMPDIR");
    (void)snprintf(path, sizeof(path), "%s/platter-core-XXXXXX", base ? base : "/tmp");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    struct io_file_options options = {.writable = true, .buffered = buffered};
    struct io_file *file = NULL;
    assert_int_equal(io_file_open(fd, &options, &file, NULL), 0);
    return file;
}

struct image *raw_image(const char *directory, uint64_t size, bool buffered)
{
    struct image_layer layer = {"raw", scratch_file(directory, size, buffered)};
    struct image_options options = {0};
    struct image *image = NULL;
    struct error err = ERROR_INIT;
    if (image_open(&layer, 1, &options, &image, &err) < 0)
        fail_msg("%s", err.message);
    return image;
}

void image_done(struct image *image)
{
    struct error err = ERROR_INIT;
    if (image_close(image, &err) < 0)
        fail_msg("%s", err.message);
}

void client_open(struct client *client, struct image *image)
{
    struct io_loop_options options = {0};
    assert_int_equal(io_loop_create(&options, &client->loop, NULL), 0);
    assert_int_equal(image_queue_create(image, client->loop, &client->queue, NULL), 0);
}

void client_close(struct client *client)
{
    client->queue = image_queue_destroy(client->queue);
    client->loop = io_loop_destroy(client->loop);
}

struct waited {
    struct image_request request; /* first */
    int result;
    bool done;
};

static void waited_done(struct image_request *request, int result)
{
    struct waited *w = (struct waited *)request;
    w->result = result;
    w->done = true;
}

int client_request(struct client *client, struct image_request *request)
{
    struct waited w = {.request = *request};
    w.request.done = waited_done;
    image_submit(client->queue, &w.request);
    while (!w.done)
        assert_true(io_loop_turn(client->loop, 10000) >= 0);
    return w.result;
}

int client_op(struct client *client, enum image_op op, uint32_t flags, uint64_t offset, void *buffer, uint64_t length)
{
    struct iovec iov = {buffer, length};
    struct image_request request = {
        .op = op, .flags = flags, .offset = offset, .length = length, .iov = &iov, .iovcnt = 1};
    return client_request(client, &request);
}

uint8_t *aligned(size_t size)
{
    void *p = NULL;
    assert_int_equal(posix_memalign(&p, 4096, size), 0);
    memset(p, 0, size);
    return p;
}

static int counting_before(struct io_seam *seam, const struct io_seam_event *event)
{
    struct counting *c = (struct counting *)seam;
    if (event->kind == SEAM_WRITE) {
        atomic_fetch_add(&c->writes, 1);
        return atomic_load(&c->fail_write);
    }
    if (event->kind == SEAM_FLUSH) {
        atomic_fetch_add(&c->flushes, 1);
        return atomic_exchange(&c->fail_flush, 0); /* like fsync: told once */
    }
    return 0;
}

struct image *counted_image(struct counting *counting, uint64_t size)
{
    struct image_layer layer = {"raw", scratch_file(NULL, size, false)};
    struct image_options options = {0};
    struct image *image = NULL;
    *counting = (struct counting){.seam = {.before = counting_before}};
    io_file_set_seam(layer.file, &counting->seam);
    assert_int_equal(image_open(&layer, 1, &options, &image, NULL), 0);
    return image;
}

void many_done(struct image_request *request, int result)
{
    struct many *m = (struct many *)request;
    m->result = result;
    atomic_fetch_sub(m->left, 1);
}

int run_on_engines(const struct CMUnitTest *tests, size_t count)
{
    static const char *const names[] = {"uring", "threads"};
    const char *only = getenv("PLATTER_IO_ENGINE");
    int failed = 0;
    if (only)
        return _cmocka_run_group_tests(only, tests, count, NULL, NULL);
    for (int i = 0; i < 2; i++) {
        struct io_loop *loop = NULL;
        struct io_loop_options options = {0};
        (void)setenv("PLATTER_IO_ENGINE", names[i], 1);
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
