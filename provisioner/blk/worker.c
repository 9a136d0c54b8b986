// SPDX-License-Identifier: Apache-2.0
/*
 * The main thread does the command; a second one does nothing but wait for the peer to go, and then ends the process
 * wherever it stands. That is allowed anywhere: a new image that was not finished is thrown away by its owner, and
 * a change to an old one leaves it as after a crash, which the engine's ordering makes harmless. A commit, which is cancelled
 * whenever somebody needs its volume, gets a moment to end by itself, so that no reserved space stays behind.
 */
#include "provisioner/blk/worker.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "common/log.h"
#include "common/message.h"
#include "provisioner/blk/blocking.h"
#include "provisioner/blk/commit.h"
#include "provisioner/blk/convert.h"
#include "provisioner/blk/incremental.h"
#include "provisioner/blk/members.h"
#include "provisioner/blk/shrink.h"
#include "provisioner/blk/worker_check.h"

enum {
    REQUEST_TIMEOUT_MS = 30000,
    SEND_TIMEOUT_MS = 30000,
    EXIT_CANCELLED = 3,
    END_MS = 1500,
};

struct worker {
    struct convert_progress progress; /* first */
    struct message_socket *socket;
    const json_t *request;
    int fds[MESSAGE_FDS_MAX];
    size_t fd_count;
    json_t *answer;
};

/* The command in hand notices by itself that its progress is not wanted any more, and leaves no reserved space behind. */
static atomic_bool ends_well;

static int need_descriptors(const struct worker *w, size_t count, struct error *err)
{
    return w->fd_count == count ? 0 : error_set(err, EINVAL, "%zu descriptors came, not %zu", w->fd_count, count);
}

static int send_progress(struct convert_progress *progress, uint64_t done, uint64_t total)
{
    struct worker *w = (struct worker *)progress;
    json_t *line = json_pack("{s:O?, s:{s:I, s:I}}", "id", json_object_get(w->request, "id"), "progress", "done",
                             (json_int_t)done, "total", (json_int_t)total);
    if (!line)
        return -ENOMEM;
    int r = message_send(w->socket, line, NULL, 0, SEND_TIMEOUT_MS, NULL);
    json_decref(line);
    return r;
}

/* ---- commands ---------------------------------------------------------------------------------------------- */

static void close_file(struct io_file **file)
{
    (void)io_file_close(*file);
}

/* Make the empty file *fd an image; the open file comes back. */
static int create_in(int *fd, const char *format, const struct image_create_options *options, struct io_file **ret_file,
                     struct error *err)
{
    CLEANUP(close_file) struct io_file *file = NULL;
    uint64_t length = 0;
    int r = file_take(fd, true, &file, err);
    if (r < 0)
        return r;
    r = io_file_length(file, &length);
    if (r < 0)
        return error_sys(err, r, "look at the new file");
    if (length && !file->block_device)
        return error_set(err, EEXIST, "the file for the new image is not empty");
    r = image_create(file, format, options, err);
    if (r == 0)
        *ret_file = steal_ptr(&file);
    return r;
}

static int do_create(struct worker *w, struct error *err)
{
    struct image_create_options options;
    const char *format;
    struct io_file *file;
    int r = need_descriptors(w, 1, err);
    if (r == 0)
        r = members_create(w->request, &format, &options, err);
    if (r == 0)
        r = create_in(&w->fds[0], format, &options, &file, err);
    if (r == 0)
        (void)io_file_close(file);
    return r;
}

/* `text` comes from an image: whatever is not printable ASCII is replaced unless all of it is good UTF-8. */
static json_t *string_from_image(const char *text)
{
    json_t *value = json_string(text);
    if (value)
        return value;
    char clean[1024];
    size_t n = 0;
    for (; n < sizeof(clean) - 1 && text[n]; n++)
        clean[n] = text[n] >= ' ' && text[n] <= '~' ? text[n] : '?';
    clean[n] = 0;
    return json_string(clean);
}

static int answer_info(struct worker *w, const struct image_info *info, struct error *err)
{
    json_t *members =
        json_pack("{s:I, s:I, s:I, s:I, s:b, s:b, s:b, s:b, s:b, s:I, s:o, s:o, s:o, s:o}", "size",
                  (json_int_t)info->size, "cluster_size", (json_int_t)info->cluster_size, "version",
                  (json_int_t)info->version, "refcount_bits", (json_int_t)info->refcount_bits, "extended_l2",
                  info->extended_l2, "dirty", info->dirty, "corrupt", info->corrupt, "encrypted", info->encrypted,
                  "external_data", info->external_data, "snapshots", (json_int_t)info->snapshots, "compression",
                  string_from_image(info->compression), "backing", string_from_image(info->backing), "backing_format",
                  string_from_image(info->backing_format), "note", string_from_image(info->note));
    if (!members || json_object_update_new(w->answer, members) < 0)
        return error_sys(err, ENOMEM, "answer");
    return 0;
}

static int do_probe(struct worker *w, struct error *err)
{
    const char *format;
    CLEANUP(close_file) struct io_file *file = NULL;
    struct image_info info = {0};
    int r = need_descriptors(w, 1, err);
    if (r == 0)
        r = member_required_string(w->request, "format", 31, &format, err);
    if (r == 0)
        r = file_take(&w->fds[0], false, &file, err);
    if (r == 0)
        r = image_probe(file, format, &info, err);
    return r < 0 ? r : answer_info(w, &info, err);
}

/* Take and open the chain that the request calls `name`. */
static int open_chain(struct worker *w, const char *name, size_t fd_count, bool writable, struct image **ret_image,
                      struct error *err)
{
    struct layer_list list;
    struct image_options options = {.read_only = !writable};
    int r = layers_take(w->request, name, w->fds, fd_count, writable, &list, err);
    if (r < 0)
        return r;
    r = layers_open_image(&list, &options, ret_image, err);
    layers_close(&list);
    return r;
}

/* Create the target of a copy from `source` and open it. */
static int open_target(struct worker *w, struct image *source, struct image **ret_target, struct error *err)
{
    struct image_create_options options;
    struct image_geometry geometry;
    struct layer_list list = {.count = 1};
    const char *format;
    int r = members_create(json_object_get(w->request, "to"), &format, &options, err);
    if (r < 0)
        return r;
    if (options.backing)
        return error_set(err, EINVAL, "a copy has no backing file");
    image_geometry(source, &geometry);
    if (options.size && options.size < geometry.size) {
        (void)error_set(err, EINVAL, "the source has %ju bytes, more than %ju", (uintmax_t)geometry.size,
                        (uintmax_t)options.size);
        return err ? error_code(err, "shrink-refused") : -EINVAL;
    }
    options.size = align_up(MAX(options.size, geometry.size), 512);
    list.layers[0].format = format;
    r = create_in(&w->fds[w->fd_count - 1], format, &options, &list.layers[0].file, err);
    if (r < 0)
        return r;
    struct image_options open_options = {0};
    r = layers_open_image(&list, &open_options, ret_target, err);
    layers_close(&list);
    return r;
}

static int do_convert(struct worker *w, struct error *err)
{
    struct image *source = NULL, *target = NULL;
    uint64_t bytes = 0;
    if (w->fd_count < 2)
        return error_set(err, EINVAL, "a copy takes at least two descriptors");
    int r = open_chain(w, "from", w->fd_count - 1, false, &source, err);
    if (r < 0)
        return error_prefix(err, "source");
    r = open_target(w, source, &target, err);
    if (r == 0)
        r = convert_copy(source, target, &w->progress, &bytes, err);
    (void)image_close(source, NULL); /* only read */
    int closed = image_close(target, r == 0 ? err : NULL);
    if (r == 0)
        r = closed;
    if (r == 0 && json_object_set_new(w->answer, "bytes", json_integer((json_int_t)bytes)) < 0)
        r = error_sys(err, ENOMEM, "answer");
    return r;
}

/* layers[0] alone, and layers[1] over the rest, for writing. */
static int open_pair(struct worker *w, struct image **ret_upper, struct image **ret_lower, struct error *err)
{
    struct layer_list all, upper = {.count = 1};
    int r = layers_take_writable(w->request, "layers", w->fds, w->fd_count, 1, &all, err);
    if (r < 0)
        return r;
    if (all.count < 2) {
        layers_close(&all);
        return error_set(err, EINVAL, "a commit takes at least two layers");
    }
    upper.layers[0] = all.layers[0];
    memmove(all.layers, all.layers + 1, --all.count * sizeof(all.layers[0]));
    r = layers_open_image(&upper, &(struct image_options){.read_only = true, .alone = true}, ret_upper, err);
    if (r == 0) {
        r = layers_open_image(&all, &(struct image_options){0}, ret_lower, err);
        if (r < 0)
            (void)image_close(*ret_upper, NULL);
    }
    layers_close(&upper);
    layers_close(&all);
    return r;
}

static int do_commit(struct worker *w, struct error *err)
{
    struct image *upper, *lower;
    uint64_t bytes_per_second, bytes = 0;
    atomic_store(&ends_well, true);
    int r = member_u64(w->request, "bytes_per_second", INT64_MAX, &bytes_per_second, err);
    if (r == 0)
        r = open_pair(w, &upper, &lower, err);
    if (r < 0)
        return r;
    r = commit_layers(upper, 1, lower, bytes_per_second, &w->progress, &bytes, err);
    (void)image_close(upper, NULL); /* only read */
    int closed = image_close(lower, r == 0 ? err : NULL);
    if (r == 0)
        r = closed;
    if (r == 0 && json_object_set_new(w->answer, "bytes", json_integer((json_int_t)bytes)) < 0)
        r = error_sys(err, ENOMEM, "answer");
    return r;
}

static int do_resize(struct worker *w, struct error *err)
{
    uint64_t size;
    struct image *image = NULL;
    int r = member_u64(w->request, "size", INT64_MAX, &size, err);
    if (r == 0)
        r = open_chain(w, "layers", w->fd_count, true, &image, err);
    if (r < 0)
        return r;
    r = image_resize(image, size, err);
    int closed = image_close(image, r == 0 ? err : NULL);
    return r < 0 ? r : closed;
}

static int do_shrink(struct worker *w, struct error *err)
{
    uint64_t size;
    struct image *image = NULL;
    bool check_only, discard_data;
    int r = member_u64(w->request, "size", INT64_MAX, &size, err);
    if (r == 0)
        r = member_bool(w->request, "check_only", &check_only, err);
    if (r == 0)
        r = member_bool(w->request, "discard_data", &discard_data, err);
    if (r == 0 && w->fd_count > 1) { /* looked at before the end is given back */
        (void)error_set(err, EOPNOTSUPP, "it stands over other layers, which would show again when it grows");
        r = error_code(err, "has-layers");
    }
    if (r == 0)
        r = open_chain(w, "layers", w->fd_count, !check_only, &image, err);
    if (r < 0)
        return r;
    r = check_only ? shrink_check(image, size, discard_data, err) : shrink_image(image, size, &w->progress, err);
    int closed = image_close(image, r == 0 ? err : NULL);
    return r < 0 ? r : closed;
}

/* Does [offset, offset + length) read as zeros? */
static int range_blank(struct blocking *b, uint64_t offset, uint64_t length, bool *ret_blank)
{
    CLEANUP_FREE uint8_t *buffer = aligned_alloc(4096, MIB);
    if (!buffer)
        return -ENOMEM;
    int r = blocking_read(b, buffer, length, offset);
    if (r < 0)
        return r;
    *ret_blank = length == 0 || (buffer[0] == 0 && memcmp(buffer, buffer + 1, length - 1) == 0);
    return 0;
}

static int do_blank(struct worker *w, struct error *err)
{
    struct image *image = NULL;
    struct image_geometry geometry;
    struct blocking *b = NULL;
    bool first = false, last = false;
    int r = open_chain(w, "layers", w->fd_count, false, &image, err);
    if (r < 0)
        return r;
    image_geometry(image, &geometry);
    uint64_t length = MIN(geometry.size, MIB);
    r = blocking_create(image, &b, err);
    if (r == 0) {
        r = range_blank(b, 0, length, &first);
        if (r == 0)
            r = range_blank(b, geometry.size - length, length, &last);
        if (r < 0)
            (void)error_sys(err, r, "read the ends of the image");
    }
    (void)blocking_destroy(b);
    (void)image_close(image, NULL); /* only read */
    if (r == 0 && json_object_set_new(w->answer, "blank", json_boolean(first && last)) < 0)
        r = error_sys(err, ENOMEM, "answer");
    return r;
}

static int check_progress(void *context, uint64_t done, uint64_t total)
{
    struct worker *w = context;
    return w->progress.report(&w->progress, done, total);
}

static int do_check(struct worker *w, struct error *err)
{
    int r = need_descriptors(w, 1, err);
    return r < 0 ? r : worker_check(w->request, &w->fds[0], check_progress, w, w->answer, err);
}

static int do_changed(struct worker *w, struct error *err)
{
    return incremental_changed(w->request, w->fds, w->fd_count, &w->progress, w->answer, err);
}

static int do_export_since(struct worker *w, struct error *err)
{
    return incremental_export(w->request, w->fds, w->fd_count, &w->progress, w->answer, err);
}

static int do_import_onto(struct worker *w, struct error *err)
{
    return incremental_import(w->request, w->fds, w->fd_count, &w->progress, w->answer, err);
}

static const struct {
    const char *op;
    int (*run)(struct worker *w, struct error *err);
} commands[] = {
    {"create", do_create},
    {"probe", do_probe},
    {"convert", do_convert},
    {"commit", do_commit},
    {"resize", do_resize},
    {"shrink", do_shrink},
    {"blank", do_blank},
    {"check", do_check},
    {"changed", do_changed},
    {"export_since", do_export_since},
    {"import_onto", do_import_onto},
};

static int run_command(struct worker *w, struct error *err)
{
    const char *op;
    int r = member_required_string(w->request, "op", 31, &op, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        if (strcmp(commands[i].op, op) == 0)
            return commands[i].run(w, err);
    }
    return error_set(err, EOPNOTSUPP, "unknown command '%s'", op);
}

/* ---- the process ------------------------------------------------------------------------------------------- */

static void *wait_for_peer_to_go(void *arg)
{
    struct pollfd p = {.fd = message_socket_fd(arg), .events = POLLRDHUP};
    while (poll(&p, 1, -1) < 0 && errno == EINTR) {
    }
    if (atomic_load(&ends_well))
        (void)poll(NULL, 0, END_MS);
    _exit(EXIT_CANCELLED);
}

static int start_watch(struct message_socket *socket)
{
    pthread_t thread;
    int r = pthread_create(&thread, NULL, wait_for_peer_to_go, socket);
    return r ? -r : pthread_detach(thread);
}

static int answer_command(struct worker *w)
{
    struct error err = ERROR_INIT;
    w->answer = json_object();
    if (!w->answer)
        return -ENOMEM;
    int r = start_watch(w->socket);
    r = r < 0 ? error_sys(&err, r, "start a thread") : run_command(w, &err);
    for (size_t i = 0; i < w->fd_count; i++)
        close_fd(&w->fds[i]);
    if (r < 0) {
        (void)json_object_clear(w->answer);
        (void)json_object_set_new(w->answer, "error", message_error(&err));
    } else {
        (void)json_object_set_new(w->answer, "ok", json_true());
    }
    (void)json_object_set(w->answer, "id", json_object_get(w->request, "id"));
    r = message_send(w->socket, w->answer, NULL, 0, SEND_TIMEOUT_MS, &err);
    if (r < 0)
        log_error("%s", err.message);
    json_decref(w->answer);
    return r;
}

int worker_run(int socket_fd)
{
    struct worker w = {.progress.report = send_progress};
    struct error err = ERROR_INIT;
    json_t *request = NULL;
    int r = message_socket_create(socket_fd, &w.socket);
    if (r < 0)
        return EXIT_FAILURE;
    r = message_receive(w.socket, &request, w.fds, MESSAGE_FDS_MAX, &w.fd_count, REQUEST_TIMEOUT_MS, &err);
    if (r < 0) {
        log_error("%s", err.message);
    } else {
        w.request = request;
        r = answer_command(&w);
        json_decref(request);
    }
    /* The socket stays open to the end of the process: the watching thread polls it. */
    return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
