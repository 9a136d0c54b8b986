// SPDX-License-Identifier: Apache-2.0
// Plays platterd's part towards real platter-blk processes, by the same calls: for scripts and trying by hand.
//
//   blk-host serve SOCKET [--read-only] [--export KIND:NAME:PATH[:QUEUES]]... FORMAT:FILE...    prints the server's pid
//   blk-host hello|flush|stats|close|kill SOCKET
//   blk-host resize SOCKET BYTES
//   blk-host unexport SOCKET NAME
//   blk-host snapshot SOCKET ID FORMAT:FILE       FILE is the new top; prints for how many microseconds requests waited
//   blk-host snapshot-again SOCKET ID FORMAT:FILE the same for a FILE that may be the top by now: its lock is not taken
//   blk-host create FORMAT:FILE BYTES [CLUSTER_SIZE [VERSION]]
//   blk-host probe FORMAT:FILE
//   blk-host convert FORMAT:TARGET FORMAT:FILE...
//   blk-host rebase SOCKET FORMAT:FILE...         all layers below the top
//   blk-host commit-shared BYTES_PER_SECOND ...   as commit, without locks: a server reads the same layers
//   blk-host commit BYTES_PER_SECOND FORMAT:FILE...   the first into the second, with locks; 0 = as fast as it can
//   blk-host grow BYTES FORMAT:FILE...
//   blk-host blank FORMAT:FILE...
//   blk-host changed LAYERS FORMAT:FILE...                       what the upper LAYERS layers hold; 0 = all: allocated
//   blk-host export-since LAYERS BASE-FORMAT:BASE-NAME NOTE TARGET FORMAT:FILE...
//   blk-host import-onto NOTE BASE-BYTES BYTES FILE FORMAT:FILE...   the first image file for writing
//
// Layers are given top first. `serve` leaves the server running and holds qemu's image locks by it.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/checked.h"
#include "provisioner/node/blk_client.h"
#include "provisioner/node/image_lock.h"

static char binary[PATH_MAX];
static struct blk_worker worker = {.binary = binary};
static struct error err;

/* "FORMAT:FILE" opened; the format ends where the colon was. */
static int open_layer(char *text, int flags, struct blk_layer *ret_layer)
{
    char *colon = strchr(text, ':');
    if (!colon)
        return error_set(&err, EINVAL, "'%s' is not FORMAT:FILE", text);
    *colon = 0;
    int fd = open(colon + 1, flags | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_sys(&err, errno, "open '%s'", colon + 1);
    *ret_layer = (struct blk_layer){text, fd};
    return 0;
}

static int open_layers(char **texts, int count, int first_flags, struct blk_layer *layers)
{
    if (count < 1 || count > BLK_LAYERS_MAX)
        return error_set(&err, EINVAL, "give 1 to %d layers", BLK_LAYERS_MAX);
    int r = 0;
    for (int i = 0; i < count && r == 0; i++)
        r = open_layer(texts[i], i ? O_RDONLY : first_flags, &layers[i]);
    return r;
}

static int listen_at(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || strlen(path) >= sizeof(address.sun_path))
        return error_sys(&err, fd < 0 ? errno : ENAMETOOLONG, "listen at '%s'", path);
    memcpy(address.sun_path, path, strlen(path));
    (void)unlink(path);
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 16) < 0)
        return error_sys(&err, errno, "listen at '%s'", path);
    return fd;
}

/* KIND:NAME:PATH[:QUEUES] */
static int add_export(struct blk_client *client, char *text, bool read_only)
{
    char *rest = NULL;
    const char *kind = strtok_r(text, ":", &rest), *name = strtok_r(NULL, ":", &rest);
    const char *path = strtok_r(NULL, ":", &rest), *queues = strtok_r(NULL, ":", &rest);
    if (!kind || !name || !path)
        return error_set(&err, EINVAL, "an export is KIND:NAME:PATH[:QUEUES]");
    int fd = listen_at(path);
    if (fd < 0)
        return fd;
    struct blk_export export = {
        .name = name,
        .kind = kind,
        .queues = queues ? (unsigned)strtoul(queues, NULL, 10) : 0,
        .read_only = read_only,
        .serial = name,
    };
    return blk_export(client, &export, fd, &err);
}

static int serve(int argc, char **argv)
{
    struct blk_layer layers[BLK_LAYERS_MAX];
    struct blk_geometry geometry;
    struct blk_client *client = NULL;
    char *exports[BLK_EXPORTS_MAX];
    int export_count = 0, i = 1;
    bool read_only = false;
    for (; i < argc && argv[i][0] == '-'; i++) {
        if (strcmp(argv[i], "--read-only") == 0)
            read_only = true;
        else if (strcmp(argv[i], "--export") == 0 && i + 1 < argc && export_count < BLK_EXPORTS_MAX)
            exports[export_count++] = argv[++i];
    }
    int count = argc - i;
    int r = open_layers(argv + i, count, read_only ? O_RDONLY : O_RDWR, layers);
    for (int l = 0; l < count && r == 0; l++)
        r = image_lock_take(layers[l].fd, l || read_only ? IMAGE_LOCK_READER : IMAGE_LOCK_WRITER, "image", &err);
    if (r == 0)
        r = blk_spawn(binary, argv[0], &client, &err);
    if (r < 0)
        return r;
    r = blk_open(client, layers, (size_t)count, read_only, 0, &geometry, &err);
    for (int e = 0; e < export_count && r == 0; e++)
        r = add_export(client, exports[e], read_only);
    if (r < 0)
        (void)blk_kill(client, NULL);
    else
        (void)printf("%d\n", (int)blk_pid(client));
    (void)blk_disconnect(client);
    return r;
}

static void print_hello(const struct blk_hello *hello)
{
    static const char *const states[] = {"empty", "open", "failed"};
    (void)printf("pid %d state %s size %" PRIu64 " exports %zu\n", (int)hello->pid, states[hello->state], hello->size,
                 hello->export_count);
}

static int print_stats(struct blk_client *client)
{
    json_t *stats;
    int r = blk_stats(client, &stats, &err);
    if (r < 0)
        return r;
    (void)json_dumpf(stats, stdout, JSON_COMPACT);
    (void)putchar('\n');
    json_decref(stats);
    return 0;
}

static int snapshot(struct blk_client *client, const char *id, char *text, bool lock)
{
    struct blk_layer layer;
    int r = open_layer(text, O_RDWR, &layer);
    if (r == 0 && lock)
        r = image_lock_take(layer.fd, IMAGE_LOCK_WRITER, "image", &err);
    if (r == 0)
        r = blk_snapshot(client, id, &layer, &err);
    if (r == 0)
        (void)printf("%" PRIu64 "\n", blk_snapshot_pause_us(client));
    return r;
}

static int rebase(struct blk_client *client, int count, char **texts)
{
    struct blk_layer layers[BLK_LAYERS_MAX];
    int r = open_layers(texts, count, O_RDONLY, layers);
    for (int i = 0; i < count && r == 0; i++)
        r = image_lock_take(layers[i].fd, IMAGE_LOCK_READER, "image", &err);
    return r < 0 ? r : blk_rebase(client, layers, (size_t)count, &err);
}

static int control(const char *verb, int argc, char **argv)
{
    struct blk_client *client;
    struct blk_hello hello;
    int r = blk_connect(argv[0], &client, &err);
    if (r < 0)
        return r;
    if (strcmp(verb, "hello") == 0) {
        r = blk_hello(client, &hello, &err);
        if (r == 0)
            print_hello(&hello);
    } else if (strcmp(verb, "flush") == 0) {
        r = blk_flush(client, &err);
    } else if (strcmp(verb, "stats") == 0) {
        r = print_stats(client);
    } else if (strcmp(verb, "close") == 0) {
        r = blk_close(client, &err);
    } else if (strcmp(verb, "kill") == 0) {
        r = blk_kill(client, &err);
    } else if (strcmp(verb, "unexport") == 0 && argc == 2) {
        r = blk_unexport(client, argv[1], &err);
    } else if (strcmp(verb, "rebase") == 0) {
        r = rebase(client, argc - 1, argv + 1);
    } else if (strncmp(verb, "snapshot", 8) == 0 && argc == 3) {
        r = snapshot(client, argv[1], argv[2], !verb[8]);
    } else if (strcmp(verb, "resize") == 0 && argc == 2) {
        r = blk_resize(client, strtoull(argv[1], NULL, 10), &err);
    } else {
        r = error_set(&err, EINVAL, "unknown command '%s'", verb);
    }
    (void)blk_disconnect(client);
    return r;
}

static int create(int argc, char **argv)
{
    struct blk_layer layer;
    if (argc < 2)
        return error_set(&err, EINVAL, "create FORMAT:FILE BYTES");
    int r = open_layer(argv[0], O_RDWR | O_CREAT | O_EXCL, &layer);
    if (r < 0)
        return r;
    struct blk_create options = {
        .format = layer.format,
        .size = strtoull(argv[1], NULL, 10),
        .cluster_size = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 0,
        .version = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 0,
    };
    return blk_worker_create(&worker, layer.fd, &options, &err);
}

static int probe(int argc, char **argv)
{
    struct blk_layer layer;
    struct blk_info info;
    int r = open_layers(argv, argc, O_RDONLY, &layer);
    if (r == 0)
        r = blk_worker_probe(&worker, layer.fd, layer.format, &info, &err);
    if (r < 0)
        return r;
    (void)printf("size %" PRIu64 " cluster %u version %u backing '%s'%s%s\n", info.size, info.cluster_size,
                 info.version, info.backing, info.note[0] ? " note " : "", info.note);
    return 0;
}

static int convert(int argc, char **argv)
{
    struct blk_layer target, from[BLK_LAYERS_MAX];
    uint64_t bytes;
    int r = open_layers(argv, 1, O_RDWR | O_CREAT | O_EXCL, &target);
    if (r == 0)
        r = open_layers(argv + 1, argc - 1, O_RDONLY, from);
    if (r < 0)
        return r;
    struct blk_create to = {.format = target.format};
    r = blk_worker_convert(&worker, from, (size_t)argc - 1, target.fd, &to, &bytes, &err);
    if (r == 0)
        (void)printf("%" PRIu64 "\n", bytes);
    return r;
}

static int commit_with(int argc, char **argv, bool lock)
{
    struct blk_layer layers[BLK_LAYERS_MAX];
    int r = open_layers(argv + 1, argc - 1, O_RDONLY, layers);
    if (r == 0 && argc > 2) { /* open_layers put an end to its format: what follows is the path */
        (void)close(layers[1].fd);
        layers[1].fd = open(argv[2] + strlen(argv[2]) + 1, O_RDWR | O_CLOEXEC);
        r = layers[1].fd < 0 ? error_sys(&err, errno, "open the lower layer") : 0;
    }
    for (int i = 0; i < argc - 1 && r == 0 && lock; i++)
        r = image_lock_take(layers[i].fd, i == 1 ? IMAGE_LOCK_WRITER : IMAGE_LOCK_READER, "image", &err);
    worker.bytes_per_second = strtoull(argv[0], NULL, 10);
    return r < 0 ? r : blk_worker_commit(&worker, layers, (size_t)argc - 1, &err);
}

static int commit(int argc, char **argv)
{
    return commit_with(argc, argv, true);
}

static int commit_shared(int argc, char **argv)
{
    return commit_with(argc, argv, false);
}

static int grow(int argc, char **argv)
{
    struct blk_layer layers[BLK_LAYERS_MAX];
    int r = open_layers(argv + 1, argc - 1, O_RDWR, layers);
    return r < 0 ? r : blk_worker_resize(&worker, layers, (size_t)argc - 1, strtoull(argv[0], NULL, 10), &err);
}

static int blank(int argc, char **argv)
{
    struct blk_layer layers[BLK_LAYERS_MAX];
    bool is_blank;
    int r = open_layers(argv, argc, O_RDONLY, layers);
    if (r == 0)
        r = blk_worker_blank(&worker, layers, (size_t)argc, &is_blank, &err);
    if (r == 0)
        (void)puts(is_blank ? "blank" : "data");
    return r;
}

static int changed(int argc, char **argv)
{
    static struct blk_changed page;
    struct blk_layer layers[BLK_LAYERS_MAX];
    unsigned since = (unsigned)strtoul(argv[0], NULL, 10);
    int r = open_layers(argv + 1, argc - 1, O_RDONLY, layers);
    while (r == 0 && (page.size == 0 || page.next < page.size)) {
        r = blk_worker_changed(&worker, layers, (size_t)argc - 1, since, page.next, 0, &page, &err);
        for (size_t i = 0; r == 0 && i < page.count; i++)
            (void)printf("%" PRIu64 " %" PRIu64 " %s\n", page.ranges[i].offset, page.ranges[i].length,
                         page.ranges[i].zero ? "zero" : "data");
    }
    return r;
}

static int export_since(int argc, char **argv)
{
    struct blk_layer layers[BLK_LAYERS_MAX];
    char *colon = argc > 4 ? strchr(argv[1], ':') : NULL;
    uint64_t bytes;
    if (!colon)
        return error_set(&err, EINVAL, "export-since LAYERS BASE-FORMAT:BASE-NAME NOTE TARGET FORMAT:FILE...");
    *colon = 0;
    struct blk_create to = {
        .format = "qcow2", .extended_l2 = true, .backing = colon + 1, .backing_format = argv[1], .note = argv[2]};
    int target = open(argv[3], O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int r =
        target < 0 ? error_sys(&err, errno, "open '%s'", argv[3]) : open_layers(argv + 4, argc - 4, O_RDONLY, layers);
    if (r == 0)
        r = blk_worker_export_since(&worker, layers, (size_t)argc - 4, (unsigned)strtoul(argv[0], NULL, 10), target,
                                    &to, &bytes, &err);
    if (r == 0)
        (void)printf("%" PRIu64 "\n", bytes);
    return r;
}

static int import_onto(int argc, char **argv)
{
    struct blk_layer layers[BLK_LAYERS_MAX];
    uint64_t bytes;
    if (argc < 5)
        return error_set(&err, EINVAL, "import-onto NOTE BASE-BYTES BYTES FILE FORMAT:FILE...");
    struct blk_import import = {
        .note = argv[0],
        .base_size = strtoull(argv[1], NULL, 10),
        .size = strtoull(argv[2], NULL, 10),
        .unchanged = 1,
    };
    int file = open(argv[3], O_RDONLY | O_CLOEXEC);
    int r = file < 0 ? error_sys(&err, errno, "open '%s'", argv[3]) : open_layers(argv + 4, argc - 4, O_RDWR, layers);
    if (r == 0)
        r = blk_worker_import_onto(&worker, file, layers, (size_t)argc - 4, &import, &bytes, &err);
    if (r == 0)
        (void)printf("%" PRIu64 "\n", bytes);
    return r;
}

static const struct {
    const char *verb;
    int (*run)(int argc, char **argv);
} verbs[] = {
    {"serve", serve},
    {"create", create},
    {"probe", probe},
    {"convert", convert},
    {"commit", commit},
    {"commit-shared", commit_shared},
    {"grow", grow},
    {"blank", blank},
    {"changed", changed},
    {"export-since", export_since},
    {"import-onto", import_onto},
};

int main(int argc, char **argv)
{
    char self[PATH_MAX - 32];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (argc < 3 || n < 0) {
        (void)fprintf(stderr, "usage: see the top of tests/lib/blk_host.c\n");
        return 2;
    }
    self[n] = 0;
    *strrchr(self, '/') = 0;
    (void)snprintf(binary, sizeof(binary), "%s/../bin/platter-blk", self);
    (void)signal(SIGPIPE, SIG_IGN);
    int (*run)(int, char **) = NULL;
    for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
        if (strcmp(verbs[i].verb, argv[1]) == 0)
            run = verbs[i].run;
    }
    int r = run ? run(argc - 2, argv + 2) : control(argv[1], argc - 2, argv + 2);
    if (r < 0)
        (void)fprintf(stderr, "blk-host: %s (%s)\n", err.message, error_code_word(&err));
    return r < 0;
}
