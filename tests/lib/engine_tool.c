// SPDX-License-Identifier: Apache-2.0
/*
 * engine-tool OPTIONS FORMAT:FILE...   (top layer first)
 *
 * Opens an image through the engine, checks that it reads as the raw file of -i says (zeros without), puts the random
 * load of the model on it, checks all of it again, closes it, and writes what it read to the raw file of -o, so that
 * other programs can be asked whether they read the same.
 *
 *   -i FILE   raw content to start from          -n N   operations for each thread (0: only read)
 *   -o FILE   raw file to write                  -t N   threads, each with its queue
 *   -s N      seed                               -d N   depth
 *   -a N      alignment                          -l N   longest operation, bytes
 *   -c N      cache, bytes                       -b     through the page cache
 *   -r        open for reading only              -S     check that status agrees with the content
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backends/format/image.h"
#include "common/checked.h"
#include "model.h"

#define LAYERS_MAX 16
#define PART (1 << 20)

struct settings {
    struct model_options mix;
    struct image_options image;
    const char *input, *output;
    bool buffered, status;
    struct image_layer layers[LAYERS_MAX];
    size_t count;
};

static int fail(const char *what, const struct error *err)
{
    (void)fprintf(stderr, "engine-tool: %s: %s\n", what, err->message);
    return -1;
}

/* ---- one request after another ------------------------------------------------------------------------------- */

struct client {
    struct image_request request;
    struct io_loop *loop;
    struct image_queue *queue;
    bool waiting;
    int result;
};

static void client_done(struct image_request *request, int result)
{
    struct client *client = (struct client *)request; /* its first member */
    client->waiting = false;
    client->result = result;
}

static int client_request(struct client *client, const struct image_request *request)
{
    client->request = *request;
    client->request.done = client_done;
    client->waiting = true;
    image_submit(client->queue, &client->request);
    while (client->waiting && io_loop_turn(client->loop, -1) >= 0)
        continue;
    return client->result;
}

/* Every extent that status calls zero must read as zeros; all of the range must be covered. */
static int check_status(struct client *client, uint64_t offset, const uint8_t *data, uint64_t length)
{
    struct image_extent extents[64];
    uint64_t at = 0;
    while (at < length) {
        struct image_status status = {.extents = extents, .max = 64};
        struct image_request request = {
            .op = IMAGE_STATUS, .offset = offset + at, .length = length - at, .status = &status};
        int r = client_request(client, &request);
        if (r < 0 || status.count == 0)
            return -1;
        for (unsigned i = 0; i < status.count; i++) {
            bool zero = extents[i].state & IMAGE_EXTENT_ZERO;
            if (extents[i].length == 0 || extents[i].length > length - at)
                return -1;
            for (uint64_t k = 0; zero && k < extents[i].length; k++)
                if (data[at + k])
                    return -1;
            at += extents[i].length;
        }
    }
    return 0;
}

static int dump_part(const struct settings *s, struct client *client, struct model *model, int fd, uint64_t offset,
                     uint8_t *buffer, uint64_t length)
{
    struct iovec iov = {.iov_base = buffer, .iov_len = length};
    struct image_request request = {.op = IMAGE_READ, .offset = offset, .length = length, .iov = &iov, .iovcnt = 1};
    int r = client_request(client, &request);
    if (r < 0 || model_compare(model, offset, buffer, length) < 0) {
        (void)fprintf(stderr, "engine-tool: reading at %llu: %s\n", (unsigned long long)offset, strerror(-r));
        return -1;
    }
    if (s->status && check_status(client, offset, buffer, length) < 0) {
        (void)fprintf(stderr, "engine-tool: wrong status at %llu\n", (unsigned long long)offset);
        return -1;
    }
    return fd < 0 || pwrite(fd, buffer, length, (off_t)offset) == (ssize_t)length ? 0 : -1;
}

/* Read everything through the engine, compare with the model, write it to the file. */
static int dump(const struct settings *s, struct image *image, struct model *model)
{
    struct error err = ERROR_INIT;
    struct client client = {0};
    int r = io_loop_create(&(struct io_loop_options){0}, &client.loop, &err);
    if (r == 0)
        r = image_queue_create(image, client.loop, &client.queue, &err);
    if (r < 0)
        return fail("queue", &err);
    int fd = s->output ? open(s->output, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) : -1;
    uint8_t *buffer = aligned_alloc(4096, PART);
    if (fd >= 0)
        r = ftruncate(fd, (off_t)s->mix.size);
    for (uint64_t at = 0; buffer && r == 0 && at < s->mix.size; at += PART)
        r = dump_part(s, &client, model, fd, at, buffer, MIN((uint64_t)PART, s->mix.size - at));
    free(buffer);
    if (fd >= 0)
        (void)close(fd);
    client.queue = image_queue_destroy(client.queue);
    client.loop = io_loop_destroy(client.loop);
    return r;
}

/* ---- the run --------------------------------------------------------------------------------------------------- */

static int load_input(const struct settings *s, struct model *model)
{
    int fd = open(s->input, O_RDONLY | O_CLOEXEC);
    uint8_t *buffer = malloc(PART);
    uint64_t at = 0;
    ssize_t n = -1;
    while (fd >= 0 && buffer && at < s->mix.size && (n = read(fd, buffer, PART)) > 0) {
        model_set(model, at, buffer, MIN((uint64_t)n, s->mix.size - at));
        at += (uint64_t)n;
    }
    free(buffer);
    if (fd >= 0)
        (void)close(fd);
    if (n < 0)
        (void)fprintf(stderr, "engine-tool: %s: %s\n", s->input, strerror(errno));
    return n < 0 ? -1 : 0;
}

static int open_files(struct settings *s)
{
    for (size_t i = 0; i < s->count; i++) {
        struct error err = ERROR_INIT;
        char *name = strchr(s->layers[i].format, ':');
        if (!name)
            return -1;
        *name++ = 0;
        bool writable = i == 0 && !s->image.read_only;
        int fd = open(name, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
        struct image_info info = {0};
        struct io_file_options options = {.writable = writable, .buffered = true};
        if (fd < 0 || io_file_open(fd, &options, &s->layers[i].file, &err) < 0)
            return fail(name, &err);
        if (s->buffered || strcmp(s->layers[i].format, "raw") == 0)
            continue;
        if (image_probe(s->layers[i].file, s->layers[i].format, &info, &err) < 0)
            return fail(name, &err);
        s->layers[i].file = io_file_close(s->layers[i].file);
        fd = open(name, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
        options = (struct io_file_options){.writable = writable, .granularity = MIN(info.cluster_size, 4096u)};
        if (fd < 0 || io_file_open(fd, &options, &s->layers[i].file, &err) < 0)
            return fail(name, &err);
    }
    return 0;
}

static int run(struct settings *s)
{
    struct error err = ERROR_INIT;
    struct image *image;
    struct image_geometry geometry;
    if (open_files(s) < 0)
        return -1;
    if (image_open(s->layers, s->count, &s->image, &image, &err) < 0)
        return fail("open", &err);
    image_geometry(image, &geometry);
    s->mix.size = geometry.size;
    unsigned operations = s->mix.operations;
    struct model *model = model_create(&s->mix);
    if (!model)
        return -1;
    int r = s->input ? load_input(s, model) : 0;
    if (r == 0 && operations)
        r = model_run(model, &model_image_target, image);
    if (r == 0)
        r = dump(s, image, model);
    if (r < 0)
        (void)fprintf(stderr, "engine-tool: seed %llu\n", (unsigned long long)model_seed(model));
    (void)model_destroy(model);
    if (image_close(image, &err) < 0)
        return fail("close", &err);
    return r;
}

int main(int argc, char **argv)
{
    struct settings s = {.mix = {.threads = 2, .depth = 16, .operations = 1000, .alignment = 512}};
    int option;
    while ((option = getopt(argc, argv, "i:o:s:a:c:n:t:d:l:brS")) != -1) {
        uint64_t value = optarg ? strtoull(optarg, NULL, 0) : 0;
        switch (option) {
        case 'i':
            s.input = optarg;
            break;
        case 'o':
            s.output = optarg;
            break;
        case 's':
            s.mix.seed = value;
            break;
        case 'a':
            s.mix.alignment = (uint32_t)value;
            break;
        case 'c':
            s.image.cache_bytes = value;
            break;
        case 'n':
            s.mix.operations = (unsigned)value;
            break;
        case 't':
            s.mix.threads = (unsigned)value;
            break;
        case 'd':
            s.mix.depth = (unsigned)value;
            break;
        case 'l':
            s.mix.max_length = (uint32_t)value;
            break;
        case 'b':
            s.buffered = true;
            break;
        case 'r':
            s.image.read_only = true;
            break;
        case 'S':
            s.status = true;
            break;
        default:
            return 2;
        }
    }
    for (; optind < argc && s.count < LAYERS_MAX; optind++)
        s.layers[s.count++].format = argv[optind];
    return s.count && run(&s) == 0 ? 0 : 1;
}
