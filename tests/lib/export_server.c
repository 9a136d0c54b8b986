// SPDX-License-Identifier: Apache-2.0
// Serves an image by one export, without the rest of platter-blk: for tests, benchmarks and trying by hand.
//
//   export-server --kind vhost-user-blk --socket PATH --image raw:FILE [--image FORMAT:FILE ...] [--queues N]
//                 [--read-only] [--serial S] [--fd N [--resumed]]
//
// Layers are given top first. --fd takes an inherited descriptor (a listening socket, or a mounted /dev/fuse) instead
// of --socket; --resumed says that a dead server used it before. Prints "ready" once it serves; then obeys lines on standard input: "resize BYTES", "stats", "quit".
// Ends at end of file, at "quit" and by SIGTERM.
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "provisioner/blk/export.h"

#define LAYERS_MAX 16

#pragma weak vhost_user_export_ops
#pragma weak nbd_export_ops
#pragma weak fuse_export_ops

struct settings {
    const char *kind, *socket, *serial;
    const char *images[LAYERS_MAX];
    size_t layers;
    unsigned queues;
    int fd;
    bool read_only, resumed;
};

struct server {
    struct image *image;
    const struct export_ops *ops;
    struct export *export;
};

static const struct export_ops *ops_of(const char *kind)
{
    const struct export_ops *const all[] = {&vhost_user_export_ops, &nbd_export_ops, &fuse_export_ops};
    for (size_t i = 0; i < ARRAY_SIZE(all); i++)
        if (all[i] && !strcmp(all[i]->kind, kind))
            return all[i];
    return NULL;
}

static int listen_on(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!path || strlen(path) >= sizeof(address.sun_path))
        return -EINVAL;
    memcpy(address.sun_path, path, strlen(path));
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    (void)unlink(path);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 16) < 0)
        return -errno;
    return steal_fd(&fd);
}

static int open_layer(const char *image, bool writable, struct image_layer *layer, struct error *err)
{
    static char formats[LAYERS_MAX][16];
    static unsigned used;
    const char *colon = strchr(image, ':');
    if (!colon || (size_t)(colon - image) >= sizeof(formats[0]))
        return error_set(err, EINVAL, "'%s' is not FORMAT:FILE", image);
    char *format = formats[used++];
    memcpy(format, image, (size_t)(colon - image));
    int fd = open(colon + 1, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    if (fd < 0)
        return error_sys(err, errno, "open '%s'", colon + 1);
    const struct io_file_options options = {.writable = writable};
    layer->format = format;
    return io_file_open(fd, &options, &layer->file, err);
}

static int server_open(struct server *server, const struct settings *settings, struct error *err)
{
    struct image_layer layers[LAYERS_MAX] = {0};
    int r = 0;
    for (size_t i = 0; i < settings->layers && r == 0; i++)
        r = open_layer(settings->images[i], i == 0 && !settings->read_only, &layers[i], err);
    const struct image_options options = {.read_only = settings->read_only};
    if (r == 0)
        r = image_open(layers, settings->layers, &options, &server->image, err);
    for (size_t i = 0; i < settings->layers && r < 0; i++)
        (void)io_file_close(layers[i].file);
    return r;
}

static int server_start(struct server *server, const struct settings *settings, struct error *err)
{
    server->ops = ops_of(settings->kind);
    if (!server->ops)
        return error_set(err, EINVAL, "no export '%s' in this build", settings->kind);
    int r = server_open(server, settings, err);
    if (r < 0)
        return r;
    int fd = settings->fd >= 0 ? settings->fd : listen_on(settings->socket);
    if (fd < 0)
        return error_sys(err, fd, "socket '%s'", settings->socket ? settings->socket : "");
    const struct export_options options = {
        .name = "test",
        .image = server->image,
        .fd = fd,
        .queues = settings->queues,
        .read_only = settings->read_only,
        .serial = settings->serial,
        .resumed = settings->resumed,
    };
    return server->ops->start(&options, &server->export, err);
}

static void print_stats(const struct server *server)
{
    struct export_stats s;
    server->ops->stats(server->export, &s);
    (void)printf("reads %lu writes %lu flushes %lu discards %lu read_bytes %lu write_bytes %lu errors %lu clients %u\n",
                 s.reads, s.writes, s.flushes, s.discards, s.read_bytes, s.write_bytes, s.errors, s.clients);
}

// Returns false when the server is to end.
static bool obey(const struct server *server, const char *line)
{
    struct error err = ERROR_INIT;
    uint64_t size;
    if (!strncmp(line, "quit", 4))
        return false;
    if (!strncmp(line, "stats", 5)) {
        print_stats(server);
    } else if (sscanf(line, "resize %lu", &size) == 1) {
        if (image_resize(server->image, size, &err) < 0) {
            (void)printf("error %s\n", err.message);
            return true;
        }
        server->ops->resized(server->export, size);
        (void)printf("resized %lu\n", size);
    } else {
        (void)printf("error unknown command\n");
    }
    return true;
}

static void serve(const struct server *server, int signals)
{
    char line[256];
    bool go = true;
    while (go) {
        struct pollfd p[2] = {{.fd = signals, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
        if (poll(p, ARRAY_SIZE(p), -1) < 0)
            continue;
        if (p[0].revents)
            return;
        if (p[1].revents)
            go = fgets(line, sizeof(line), stdin) && obey(server, line);
        (void)fflush(stdout);
    }
}

static void parse(int argc, char **argv, struct settings *s)
{
    static const struct option options[] = {
        {"kind", required_argument, NULL, 'k'},
        {"socket", required_argument, NULL, 's'},
        {"image", required_argument, NULL, 'i'},
        {"queues", required_argument, NULL, 'q'},
        {"serial", required_argument, NULL, 'n'},
        {"fd", required_argument, NULL, 'f'},
        {"read-only", no_argument, NULL, 'r'},
        {"resumed", no_argument, NULL, 'e'},
        {0},
    };
    int c;
    while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0) {
        if (c == 'k')
            s->kind = optarg;
        else if (c == 's')
            s->socket = optarg;
        else if (c == 'i' && s->layers < LAYERS_MAX)
            s->images[s->layers++] = optarg;
        else if (c == 'q')
            s->queues = (unsigned)strtoul(optarg, NULL, 10);
        else if (c == 'n')
            s->serial = optarg;
        else if (c == 'f')
            s->fd = (int)strtol(optarg, NULL, 10);
        else if (c == 'r')
            s->read_only = true;
        else if (c == 'e')
            s->resumed = true;
        else
            exit(2);
    }
}

int main(int argc, char **argv)
{
    struct settings settings = {.kind = "vhost-user-blk", .fd = -1};
    struct server server = {0};
    struct error err = ERROR_INIT;
    sigset_t set;
    parse(argc, argv, &settings);
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGINT);
    (void)sigprocmask(SIG_BLOCK, &set, NULL);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)setvbuf(stdin, NULL, _IONBF, 0); // poll() must not miss lines that stdio holds
    CLEANUP_CLOSE int signals = signalfd(-1, &set, SFD_CLOEXEC);
    int r = server_start(&server, &settings, &err);
    if (r == 0) {
        (void)printf("ready\n");
        (void)fflush(stdout);
        serve(&server, signals);
        server.ops->stop(server.export);
    }
    if (server.image && image_close(server.image, r < 0 ? NULL : &err) < 0)
        r = -EIO;
    if (r < 0)
        (void)fprintf(stderr, "export-server: %s\n", err.message);
    return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
