// SPDX-License-Identifier: Apache-2.0
#include "fixture.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

const struct kind kinds[] = {
    {.name = "over raw", .bottom = "raw", .cluster_size = 65536},
    {.name = "small clusters", .bottom = "qcow2", .cluster_size = 4096},
    {.name = "subclusters", .bottom = "qcow2", .cluster_size = 131072, .extended_l2 = true},
};
const unsigned kinds_count = sizeof(kinds) / sizeof(kinds[0]);

static char directory[256];

int scratch_begin(void **state)
{
    const char *base = getenv("TMPDIR");
    (void)state;
    (void)snprintf(directory, sizeof(directory), "%s/platter-snapshot-XXXXXX", base ? base : "/tmp");
    return mkdtemp(directory) ? 0 : -1;
}

int scratch_end(void **state)
{
    char command[300];
    (void)state;
    (void)snprintf(command, sizeof(command), "rm -rf --one-file-system '%s'", directory);
    return system(command);
}

const char *scratch(const char *name)
{
    static char paths[16][320];
    static unsigned next;
    char *path = paths[next++ % 16];
    (void)snprintf(path, sizeof(paths[0]), "%s/%s", directory, name);
    return path;
}

const char *layer_path(unsigned number)
{
    char name[32];
    (void)snprintf(name, sizeof(name), "layer-%u", number);
    return scratch(name);
}

const char *layer_format(const struct kind *kind, unsigned number)
{
    return number == 0 ? kind->bottom : "qcow2";
}

void layer_create(const struct kind *kind, unsigned number, uint64_t size)
{
    char backing[32];
    struct error err = ERROR_INIT;
    struct image_create_options options = {
        .size = size,
        .cluster_size = kind->cluster_size,
        .extended_l2 = kind->extended_l2,
        .backing = number ? backing : NULL,
        .backing_format = number ? layer_format(kind, number - 1) : NULL,
    };
    (void)snprintf(backing, sizeof(backing), "layer-%u", number - 1);
    int fd = open(layer_path(number), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    (void)close(fd);
    struct io_file *file = file_open(layer_path(number), true);
    if (image_create(file, layer_format(kind, number), &options, &err) < 0)
        fail_msg("%s", err.message);
    (void)io_file_close(file);
}

struct io_file *file_open(const char *path, bool writable)
{
    int fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    struct io_file *file = NULL;
    assert_true(fd >= 0);
    assert_int_equal(io_file_open(fd, &(struct io_file_options){.writable = writable, .buffered = true}, &file, NULL),
                     0);
    return file;
}

struct image *chain_open(const struct kind *kind, unsigned number, bool read_only)
{
    struct image_layer layers[LAYERS_MAX];
    struct image *image = NULL;
    struct error err = ERROR_INIT;
    for (unsigned i = 0; i <= number; i++)
        layers[i] = (struct image_layer){layer_format(kind, number - i),
                                         file_open(layer_path(number - i), i == 0 && !read_only)};
    struct image_options options = {.read_only = read_only};
    if (image_open(layers, number + 1, &options, &image, &err) < 0)
        fail_msg("open a chain of %u: %s", number + 1, err.message);
    return image;
}

int chain_snapshot(const struct kind *kind, struct image *image, unsigned number, struct error *err)
{
    struct image_layer layer = {layer_format(kind, number), file_open(layer_path(number), true)};
    int r = image_snapshot(image, &layer, err);
    if (r < 0)
        (void)io_file_close(layer.file);
    return r;
}

void chain_read(const struct kind *kind, unsigned number, uint8_t *content, uint64_t size)
{
    struct client client;
    struct image *image = chain_open(kind, number, true);
    client_open(&client, image);
    assert_int_equal(client_op(&client, IMAGE_READ, 0, content, size), 0);
    client_close(&client);
    assert_int_equal(image_close(image, NULL), 0);
}

/* ---- a client ---- */

void client_open(struct client *client, struct image *image)
{
    assert_int_equal(io_loop_create(&(struct io_loop_options){0}, &client->loop, NULL), 0);
    assert_int_equal(image_queue_create(image, client->loop, &client->queue, NULL), 0);
}

void client_close(struct client *client)
{
    client->queue = image_queue_destroy(client->queue);
    client->loop = io_loop_destroy(client->loop);
}

struct waiting {
    struct image_request request; /* first */
    bool done;
    int result;
};

static void waiting_done(struct image_request *request, int result)
{
    struct waiting *w = (struct waiting *)request;
    w->result = result;
    w->done = true;
}

static int wait_for(struct client *client, struct waiting *w)
{
    w->request.done = waiting_done;
    image_submit(client->queue, &w->request);
    while (!w->done)
        assert_true(io_loop_turn(client->loop, 30000) >= 0);
    return w->result;
}

int client_op(struct client *client, enum image_op op, uint64_t offset, void *buffer, uint64_t length)
{
    struct iovec iov = {.iov_base = buffer, .iov_len = length};
    struct waiting w = {.request = {.op = op, .offset = offset, .length = length, .iov = &iov, .iovcnt = 1}};
    return wait_for(client, &w);
}

int client_status(struct client *client, uint64_t offset, uint64_t length, uint32_t layers, struct image_status *status)
{
    struct waiting w = {
        .request = {.op = IMAGE_STATUS, .offset = offset, .length = length, .layers = layers, .status = status}};
    return wait_for(client, &w);
}

/* ---- judges ---- */

bool check_image(const char *path, bool leaks_allowed)
{
    char command[700];
    (void)snprintf(command, sizeof(command), "qemu-img check '%s' >'%s' 2>&1", path, scratch("check"));
    int status = system(command);
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    if (code == 0 || (code == 3 && leaks_allowed))
        return true;
    (void)snprintf(command, sizeof(command), "cat '%s' >&2", scratch("check"));
    if (system(command) != 0)
        print_error("cannot show what qemu-img said\n");
    return false;
}

int run_on_engines(const struct CMUnitTest *tests, size_t count)
{
    static const char *const engines[] = {"uring", "threads"};
    const char *given = getenv("PLATTER_IO_ENGINE");
    int failed = 0;
    for (unsigned i = 0; i < (given ? 1u : 2u); i++) {
        const char *engine = given ? given : engines[i];
        (void)setenv("PLATTER_IO_ENGINE", engine, 1);
        failed += _cmocka_run_group_tests(engine, tests, count, scratch_begin, scratch_end);
    }
    return failed;
}
