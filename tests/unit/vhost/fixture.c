// SPDX-License-Identifier: Apache-2.0
#include "fixture.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include <cmocka.h>

#include "common/cleanup.h"

static int count_flush(struct io_seam *seam, const struct io_seam_event *event)
{
    struct fixture *f = (void *)((char *)seam - offsetof(struct fixture, seam));
    if (event->kind == SEAM_FLUSH)
        __atomic_add_fetch(&f->flushes, 1, __ATOMIC_RELAXED);
    return 0;
}

static void check(int result, const struct error *err)
{
    if (result < 0)
        fail_msg("%s", err->message);
}

static int listen_on(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    memcpy(address.sun_path, path, strlen(path));
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(fd, 4), 0);
    return fd;
}

void fixture_start(struct fixture *f, const char *format, uint64_t size, bool read_only)
{
    struct error err = ERROR_INIT;
    *f = (struct fixture){.format = format, .size = size, .read_only = read_only, .seam = {.before = count_flush}};
    (void)snprintf(f->path, sizeof(f->path), "/tmp/platter-vhost.XXXXXX");
    int fd = mkostemp(f->path, O_CLOEXEC);
    assert_true(fd >= 0);
    (void)snprintf(f->socket, sizeof(f->socket), "%s.sock", f->path);
    const struct io_file_options file_options = {.writable = true};
    check(io_file_open(fd, &file_options, &f->file, &err), &err);
    const struct image_create_options create = {.size = size};
    check(image_create(f->file, format, &create, &err), &err);
    io_file_set_seam(f->file, &f->seam);
    const struct image_layer layer = {.format = format, .file = f->file};
    const struct image_options image_options = {.read_only = read_only};
    check(image_open(&layer, 1, &image_options, &f->image, &err), &err);
    const struct export_options options = {
        .name = "test",
        .image = f->image,
        .fd = listen_on(f->socket),
        .queues = FIXTURE_QUEUES,
        .read_only = read_only,
        .serial = "serial-0001",
    };
    check(vhost_user_export_ops.start(&options, &f->export, &err), &err);
}

void fixture_stop(struct fixture *f)
{
    struct error err = ERROR_INIT;
    f->export->ops->stop(f->export);
    check(image_close(f->image, &err), &err);
    if (!strcmp(f->format, "qcow2")) {
        char command[128];
        (void)snprintf(command, sizeof(command), "qemu-img check -q -f qcow2 %s", f->path);
        int status = system(command); // NOLINT(cert-env33-c): a test's own path
        assert_true(status == 0 || WEXITSTATUS(status) == 127);
    }
    (void)unlink(f->path);
    (void)unlink(f->socket);
}

struct vhost_client *fixture_client(const struct fixture *f, const struct vhost_client_options *options)
{
    struct vhost_client_options o = options ? *options : (struct vhost_client_options){0};
    struct vhost_client *client = NULL;
    o.socket = f->socket;
    assert_int_equal(vhost_client_connect(&o, &client), 0);
    return client;
}

unsigned count_fds(void)
{
    unsigned count = 0;
    CLEANUP_CLOSEDIR DIR *directory = opendir("/proc/self/fd");
    assert_non_null(directory);
    while (readdir(directory))
        count++;
    return count;
}

uint64_t test_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

uint64_t test_seed(void)
{
    const char *given = getenv("PLATTER_TEST_SEED");
    uint64_t seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL) * 2654435761u;
    (void)printf("PLATTER_TEST_SEED=%lu\n", seed);
    return seed | 1;
}
