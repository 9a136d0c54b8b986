// SPDX-License-Identifier: Apache-2.0
/*
 * Worker calls: one short-lived platter-blk for each. Whatever happens the process is gone when the call returns, unless
 * it hangs in the kernel; it also ends by itself when our end of its socket closes, so none survives a platterd that
 * was killed.
 */
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "common/message.h"
#include "provisioner/node/blk_layers.h"
#include "provisioner/node/blk_process.h"

enum {
    STALL_MS = 300 * 1000,
    SEND_MS = 10 * 1000,
    EXIT_MS = 10 * 1000,
    LINGER_MS = 5 * 1000,
    END_MS = 2 * 1000,
};

static const struct blk_worker default_worker = {0};

struct run {
    const struct blk_worker *worker;
    struct message_socket *socket;
    int pidfd;
    bool done; /* it has answered */
    json_t *answer;
};

static int64_t now_ms(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static _Atomic int64_t last_killed; /* CLOCK_MONOTONIC, ms */

bool blk_worker_may_linger(void)
{
    int64_t killed = atomic_load(&last_killed);
    return killed && now_ms() - killed < LINGER_MS;
}

static void run_finish(struct run *run)
{
    char how[48];
    run->socket = message_socket_destroy(run->socket); /* which tells it to end */
    if (run->pidfd >= 0 && !run->done)
        (void)blk_process_wait(run->pidfd, END_MS, how);
    if (run->pidfd >= 0)
        (void)blk_process_kill(run->pidfd); /* no harm when it has ended */
    if (run->pidfd >= 0 && !run->done)
        atomic_store(&last_killed, now_ms());
    close_fd(&run->pidfd);
    json_decref(run->answer);
}

static int start(struct run *run, struct error *err)
{
    int pair[2];
    pid_t pid;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return error_sys(err, errno, "start a worker");
    CLEANUP_CLOSE int ours = pair[0];
    CLEANUP_CLOSE int theirs = pair[1]; /* closed here so that the worker's end is the only one */
    int r = blk_process_start(run->worker->binary, "worker", theirs, &pid, &run->pidfd, err);
    if (r < 0)
        return r;
    r = message_socket_create(ours, &run->socket);
    if (r < 0)
        return error_sys(err, r, "start a worker");
    ours = -1;
    return 0;
}

/* Take one line. 1 = it was the answer, 0 = go on. */
static int take_line(struct run *run, struct error *err)
{
    json_t *line;
    int r = message_receive(run->socket, &line, NULL, 0, NULL, 0, err);
    if (r < 0)
        return r;
    const json_t *progress = json_object_get(line, "progress");
    if (!progress) {
        run->answer = line;
        return 1;
    }
    json_int_t done = json_integer_value(json_object_get(progress, "done"));
    json_int_t total = json_integer_value(json_object_get(progress, "total"));
    json_decref(line);
    if (run->worker->progress && done >= 0 && total >= done)
        run->worker->progress(run->worker->context, (uint64_t)done, (uint64_t)total);
    return 0;
}

/* Until the socket has something to read. */
static int wait_line(struct run *run, int64_t deadline, struct error *err)
{
    const struct blk_worker *w = run->worker;
    struct pollfd fds[2] = {
        {.fd = message_socket_fd(run->socket), .events = POLLIN},
        {.fd = w->has_cancel ? w->cancel_fd : -1, .events = POLLIN},
    };
    int r = poll(fds, 2, (int)MAX(deadline - now_ms(), 0));
    if (r < 0)
        return errno == EINTR ? 0 : error_sys(err, errno, "wait for the worker");
    if (r == 0)
        return error_set(err, ETIMEDOUT, "the worker makes no progress");
    if (fds[1].revents)
        return error_set(err, ECANCELED, "cancelled");
    return 0;
}

static int await_answer(struct run *run, struct error *err)
{
    int stall_ms = run->worker->stall_ms ? run->worker->stall_ms : STALL_MS;
    int64_t deadline = now_ms() + stall_ms;
    for (;;) {
        int r = take_line(run, err);
        if (r == 1)
            return 0;
        if (r == 0)
            deadline = now_ms() + stall_ms;
        else if (r == -ETIMEDOUT)
            r = wait_line(run, deadline, err);
        if (r < 0)
            return r;
    }
}

/* The connection ended without an answer: say how the process did. */
static int explain_end(struct run *run, int r, struct error *err)
{
    char how[48] = "";
    if (r == -EPIPE && blk_process_wait(run->pidfd, EXIT_MS, how) == 0 && how[0])
        return error_set(err, EIO, "the worker gave no answer: %s", how);
    return r;
}

/* Run one command: `request` is taken over. With ret_answer the answer is the caller's. */
static int run_command(const struct blk_worker *worker, const char *op, json_t *request, const int *fds, size_t count,
                       json_t **ret_answer, struct error *err)
{
    CLEANUP(run_finish) struct run run = {.worker = worker ? worker : &default_worker, .pidfd = -1};
    char how[48];
    if (!request || json_object_set_new(request, "op", json_string(op)) < 0 ||
        json_object_set_new(request, "id", json_integer(1)) < 0) {
        json_decref(request);
        return error_sys(err, ENOMEM, "start a worker");
    }
    struct error local = ERROR_INIT;
    int r = start(&run, &local);
    if (r == 0)
        r = message_send(run.socket, request, fds, count, SEND_MS, &local);
    json_decref(request);
    if (r == 0 || r == -EPIPE)
        r = run.socket ? await_answer(&run, &local) : r;
    if (r < 0 && run.socket)
        r = explain_end(&run, r, &local);
    run.done = r == 0;
    if (r == 0)
        r = message_result(run.answer, &local);
    if (r < 0)
        return error_copy(err, &local);
    (void)blk_process_wait(run.pidfd, EXIT_MS, how);
    if (ret_answer)
        *ret_answer = steal_ptr(&run.answer);
    return 0;
}

static json_t *pack_create(const struct blk_create *c)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:b, s:s*, s:I, s:s*, s:s*, s:b, s:s*}", "format", c->format, "size",
                     (json_int_t)c->size, "cluster_size", (json_int_t)c->cluster_size, "version",
                     (json_int_t)c->version, "extended_l2", c->extended_l2, "compression", c->compression,
                     "refcount_bits", (json_int_t)c->refcount_bits, "backing", c->backing, "backing_format",
                     c->backing_format, "preallocate", c->preallocate, "note", c->note);
}

int blk_worker_create(const struct blk_worker *worker, int fd, const struct blk_create *create, struct error *err)
{
    return run_command(worker, "create", pack_create(create), &fd, 1, NULL, err);
}

static uint64_t get_u64(const json_t *object, const char *name)
{
    json_int_t value = json_integer_value(json_object_get(object, name));
    return value < 0 ? 0 : (uint64_t)value;
}

static bool get_bool(const json_t *object, const char *name)
{
    return json_is_true(json_object_get(object, name));
}

static void get_string(const json_t *object, const char *name, char *to, size_t size)
{
    const char *text = json_string_value(json_object_get(object, name));
    (void)snprintf(to, size, "%s", text ? text : "");
}

int blk_worker_probe(const struct blk_worker *worker, int fd, const char *format, struct blk_info *ret_info,
                     struct error *err)
{
    json_t *a;
    int r = run_command(worker, "probe", json_pack("{s:s}", "format", format), &fd, 1, &a, err);
    if (r < 0)
        return r;
    *ret_info = (struct blk_info){
        .size = get_u64(a, "size"),
        .cluster_size = (uint32_t)get_u64(a, "cluster_size"),
        .version = (uint32_t)get_u64(a, "version"),
        .refcount_bits = (uint32_t)get_u64(a, "refcount_bits"),
        .extended_l2 = get_bool(a, "extended_l2"),
        .dirty = get_bool(a, "dirty"),
        .corrupt = get_bool(a, "corrupt"),
        .encrypted = get_bool(a, "encrypted"),
        .external_data = get_bool(a, "external_data"),
        .snapshots = (uint32_t)get_u64(a, "snapshots"),
    };
    get_string(a, "compression", ret_info->compression, sizeof(ret_info->compression));
    get_string(a, "backing", ret_info->backing, sizeof(ret_info->backing));
    get_string(a, "backing_format", ret_info->backing_format, sizeof(ret_info->backing_format));
    get_string(a, "note", ret_info->note, sizeof(ret_info->note));
    json_decref(a);
    return 0;
}

int blk_worker_convert(const struct blk_worker *worker, const struct blk_layer *from, size_t count, int target,
                       const struct blk_create *to, uint64_t *ret_bytes, struct error *err)
{
    int fds[BLK_LAYERS_MAX + 1];
    json_t *answer = NULL;
    if (count == 0 || count > BLK_LAYERS_MAX)
        return error_set(err, EINVAL, "a chain has 1 to %d layers", BLK_LAYERS_MAX);
    json_t *request = json_pack("{s:o, s:o}", "from", blk_layers_pack(from, count, fds), "to", pack_create(to));
    fds[count] = target;
    int r = run_command(worker, "convert", request, fds, count + 1, &answer, err);
    if (r < 0)
        return r;
    if (ret_bytes)
        *ret_bytes = get_u64(answer, "bytes");
    json_decref(answer);
    return 0;
}

int blk_worker_resize(const struct blk_worker *worker, const struct blk_layer *layers, size_t count, uint64_t size,
                      struct error *err)
{
    int fds[BLK_LAYERS_MAX];
    if (count == 0 || count > BLK_LAYERS_MAX)
        return error_set(err, EINVAL, "a chain has 1 to %d layers", BLK_LAYERS_MAX);
    json_t *request = json_pack("{s:o, s:I}", "layers", blk_layers_pack(layers, count, fds), "size", (json_int_t)size);
    return run_command(worker, "resize", request, fds, count, NULL, err);
}

int blk_worker_shrink(const struct blk_worker *worker, const struct blk_layer *layers, size_t count,
                      const struct blk_shrink *shrink, struct error *err)
{
    int fds[BLK_LAYERS_MAX];
    if (count == 0 || count > BLK_LAYERS_MAX)
        return error_set(err, EINVAL, "a chain has 1 to %d layers", BLK_LAYERS_MAX);
    json_t *request =
        json_pack("{s:o, s:I, s:b, s:b}", "layers", blk_layers_pack(layers, count, fds), "size",
                  (json_int_t)shrink->size, "discard_data", shrink->discard_data, "check_only", shrink->check_only);
    return run_command(worker, "shrink", request, fds, count, NULL, err);
}

int blk_worker_commit(const struct blk_worker *worker, const struct blk_layer *layers, size_t count, struct error *err)
{
    int fds[BLK_LAYERS_MAX];
    if (count < 2 || count > BLK_LAYERS_MAX)
        return error_set(err, EINVAL, "a commit takes 2 to %d layers", BLK_LAYERS_MAX);
    json_t *request = json_pack("{s:o, s:I}", "layers", blk_layers_pack(layers, count, fds), "bytes_per_second",
                                (json_int_t)(worker ? worker->bytes_per_second : 0));
    return run_command(worker, "commit", request, fds, count, NULL, err);
}

int blk_worker_blank(const struct blk_worker *worker, const struct blk_layer *layers, size_t count, bool *ret_blank,
                     struct error *err)
{
    int fds[BLK_LAYERS_MAX];
    json_t *answer = NULL;
    if (count == 0 || count > BLK_LAYERS_MAX)
        return error_set(err, EINVAL, "a chain has 1 to %d layers", BLK_LAYERS_MAX);
    json_t *request = json_pack("{s:o}", "layers", blk_layers_pack(layers, count, fds));
    int r = run_command(worker, "blank", request, fds, count, &answer, err);
    if (r < 0)
        return r;
    *ret_blank = get_bool(answer, "blank");
    json_decref(answer);
    return 0;
}

int blk_worker_check(const struct blk_worker *worker, int fd, const char *format, bool repair,
                     struct blk_check *ret_check, struct error *err)
{
    json_t *a;
    int r = run_command(worker, "check", json_pack("{s:s, s:b}", "format", format, "repair", repair), &fd, 1, &a, err);
    if (r < 0)
        return r;
    *ret_check = (struct blk_check){
        .clusters = get_u64(a, "clusters"),
        .allocated = get_u64(a, "allocated"),
        .compressed = get_u64(a, "compressed"),
        .leaks = get_u64(a, "leaks"),
        .low_counts = get_u64(a, "low_counts"),
        .copied_flags = get_u64(a, "copied_flags"),
        .bad_entries = get_u64(a, "bad_entries"),
        .double_use = get_u64(a, "double_use"),
        .repaired = get_u64(a, "repaired"),
        .dirty = get_bool(a, "dirty"),
        .corrupt = get_bool(a, "corrupt"),
    };
    json_decref(a);
    return 0;
}

/* ---- what changed -------------------------------------------------------------------------------------------- */

static int take_changed(const json_t *answer, struct blk_changed *c, struct error *err)
{
    size_t i;
    json_t *range;
    c->next = get_u64(answer, "next");
    c->size = get_u64(answer, "size");
    c->count = 0;
    json_array_foreach (json_object_get(answer, "ranges"), i, range) {
        json_int_t offset, length;
        int zero;
        if (c->count == BLK_CHANGED_MAX || json_unpack(range, "[I, I, b]", &offset, &length, &zero) < 0 || offset < 0 ||
            length <= 0)
            return error_set(err, EBADMSG, "the worker's answer cannot be understood");
        c->ranges[c->count++] = (struct blk_range){(uint64_t)offset, (uint64_t)length, zero};
    }
    return 0;
}

int blk_worker_changed(const struct blk_worker *worker, const struct blk_layer *layers, size_t count, unsigned since,
                       uint64_t offset, unsigned limit, struct blk_changed *ret_changed, struct error *err)
{
    int fds[BLK_LAYERS_MAX];
    json_t *answer = NULL;
    if (count == 0 || count > BLK_LAYERS_MAX)
        return error_set(err, EINVAL, "a chain has 1 to %d layers", BLK_LAYERS_MAX);
    json_t *request =
        json_pack("{s:o, s:I, s:I, s:I}", "layers", blk_layers_pack(layers, count, fds), "since", (json_int_t)since,
                  "offset", (json_int_t)offset, "limit", (json_int_t)MIN(limit, (unsigned)BLK_CHANGED_MAX));
    int r = run_command(worker, "changed", request, fds, count, &answer, err);
    if (r < 0)
        return r;
    r = take_changed(answer, ret_changed, err);
    json_decref(answer);
    return r;
}

static int run_for_bytes(const struct blk_worker *worker, const char *op, json_t *request, const int *fds, size_t count,
                         uint64_t *ret_bytes, struct error *err)
{
    json_t *answer = NULL;
    int r = run_command(worker, op, request, fds, count, &answer, err);
    if (r < 0)
        return r;
    if (ret_bytes)
        *ret_bytes = get_u64(answer, "bytes");
    json_decref(answer);
    return 0;
}

int blk_worker_export_since(const struct blk_worker *worker, const struct blk_layer *layers, size_t count,
                            unsigned since, int target, const struct blk_create *to, uint64_t *ret_bytes,
                            struct error *err)
{
    int fds[BLK_LAYERS_MAX + 1];
    if (count < 2 || count > BLK_LAYERS_MAX)
        return error_set(err, EINVAL, "an incremental export takes 2 to %d layers", BLK_LAYERS_MAX);
    json_t *request = json_pack("{s:o, s:I, s:o}", "layers", blk_layers_pack(layers, count, fds), "since",
                                (json_int_t)since, "to", pack_create(to));
    fds[count] = target;
    return run_for_bytes(worker, "export_since", request, fds, count + 1, ret_bytes, err);
}

int blk_worker_import_onto(const struct blk_worker *worker, int file, const struct blk_layer *layers, size_t count,
                           const struct blk_import *import, uint64_t *ret_bytes, struct error *err)
{
    int fds[BLK_LAYERS_MAX];
    struct blk_layer all[BLK_LAYERS_MAX] = {{"qcow2", file}};
    if (count == 0 || count >= BLK_LAYERS_MAX)
        return error_set(err, EINVAL, "a file can be applied to 1 to %d layers", BLK_LAYERS_MAX - 1);
    memcpy(all + 1, layers, count * sizeof(*layers));
    json_t *request = json_pack("{s:o, s:s, s:I, s:I, s:I}", "layers", blk_layers_pack(all, count + 1, fds), "note",
                                import->note, "base_size", (json_int_t)import->base_size, "size",
                                (json_int_t)import->size, "unchanged", (json_int_t)import->unchanged);
    return run_for_bytes(worker, "import_onto", request, fds, count + 1, ret_bytes, err);
}
