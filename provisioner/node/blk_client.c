// SPDX-License-Identifier: Apache-2.0
/*
 * The client of one block server.
 *
 * Who is it that answers? The server listens on its socket itself, so SO_PEERCRED names the server although platterd
 * has bound the socket. A pidfd taken on that number belongs to the server for certain once it has answered "hello" with
 * the same number: it has been alive all the while.
 */
#include "provisioner/node/blk_client.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/message.h"
#include "provisioner/node/blk_layers.h"
#include "provisioner/node/blk_process.h"

enum {
    PROTOCOL = 1,
    BACKLOG = 8,
    /* How long a call may take. What touches the disk gets as long as a slow disk may need for all that is cached. */
    HELLO_MS = 10 * 1000,
    SEND_MS = 10 * 1000,
    STOP_MS = 60 * 1000,
    DISK_MS = 300 * 1000,
    EXIT_MS = 30 * 1000,
};

struct blk_client {
    struct message_socket *socket;
    pid_t pid;
    int pidfd;
    json_int_t last_id;
    char *path;
    uint64_t snapshot_pause_us;
};

/* ---- the socket ---------------------------------------------------------------------------------------------- */

/* The address of `path`, which may be longer than an address: then by way of its directory, open in *ret_dir_fd. */
static int unix_address(const char *path, struct sockaddr_un *ret_address, int *ret_dir_fd)
{
    *ret_address = (struct sockaddr_un){.sun_family = AF_UNIX};
    size_t room = sizeof(ret_address->sun_path);
    if (strlen(path) < room) {
        memcpy(ret_address->sun_path, path, strlen(path));
        return 0;
    }
    const char *slash = strrchr(path, '/');
    if (!slash)
        return -ENAMETOOLONG;
    CLEANUP_FREE char *dir = strndup(path, (size_t)(slash - path) + 1);
    if (!dir)
        return -ENOMEM;
    CLEANUP_CLOSE int fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if ((size_t)snprintf(ret_address->sun_path, room, "/proc/self/fd/%d/%s", fd, slash + 1) >= room)
        return -ENAMETOOLONG;
    *ret_dir_fd = steal_fd(&fd);
    return 0;
}

static int remove_old_socket(const char *path)
{
    struct stat st;
    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : -errno;
    if (!S_ISSOCK(st.st_mode))
        return -EEXIST;
    return unlink(path) < 0 && errno != ENOENT ? -errno : 0;
}

static int bind_socket(const char *path, int *ret_fd)
{
    struct sockaddr_un address;
    CLEANUP_CLOSE int dir_fd = -1;
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    int r = unix_address(path, &address, &dir_fd);
    if (r == 0)
        r = remove_old_socket(path);
    if (r < 0)
        return r;
    if (fchmod(fd, 0600) < 0) /* before bind, so that the file is never open to others */
        return -errno;
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return -errno;
    if (listen(fd, BACKLOG) < 0) {
        r = -errno;
        (void)unlink(path);
        return r;
    }
    *ret_fd = steal_fd(&fd);
    return 0;
}

static int connect_socket(const char *path, int *ret_fd)
{
    struct sockaddr_un address;
    CLEANUP_CLOSE int dir_fd = -1;
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    int r = unix_address(path, &address, &dir_fd);
    if (r < 0)
        return r;
    /* A full backlog must not hold us up: the server handles connections one by one. */
    struct timeval limit = {.tv_sec = HELLO_MS / 1000};
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return errno == EAGAIN ? -ETIMEDOUT : -errno;
    *ret_fd = steal_fd(&fd);
    return 0;
}

/* ---- calls --------------------------------------------------------------------------------------------------- */

static json_t *drop_answer(json_t *answer)
{
    json_decref(answer);
    return NULL;
}

static void cleanup_json(json_t **object)
{
    json_decref(*object);
}

/* Send `request` (taken over; NULL = it could not be made) and await its answer, a new reference if wanted. */
static int call(struct blk_client *c, const char *op, json_t *request, const int *fds, size_t fd_count, int timeout_ms,
                json_t **ret_answer, struct error *err)
{
    CLEANUP(cleanup_json) json_t *owned = request;
    CLEANUP(cleanup_json) json_t *answer = NULL;
    c->last_id++;
    if (!owned || json_object_set_new(owned, "op", json_string(op)) < 0 ||
        json_object_set_new(owned, "id", json_integer(c->last_id)) < 0)
        return error_sys(err, ENOMEM, "ask the block server to %s", op);
    int r = message_send(c->socket, owned, fds, fd_count, SEND_MS, err);
    if (r == 0)
        r = message_receive(c->socket, &answer, NULL, 0, NULL, timeout_ms, err);
    if (r < 0) {
        answer = NULL;
        return err ? error_prefix(err, "block server %d, %s", (int)c->pid, op) : r;
    }
    if (json_integer_value(json_object_get(answer, "id")) != c->last_id)
        return error_set(err, EBADMSG, "block server %d, %s: the answer is to another request", (int)c->pid, op);
    r = message_result(answer, err);
    if (r == 0 && ret_answer)
        *ret_answer = steal_ptr(&answer);
    return r;
}

static void copy_string(char *to, size_t size, const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    (void)snprintf(to, size, "%s", text ? text : "");
}

static uint64_t get_u64(const json_t *object, const char *name)
{
    json_int_t value = json_integer_value(json_object_get(object, name));
    return value < 0 ? 0 : (uint64_t)value;
}

static enum blk_state state_of(const char *word)
{
    if (word && strcmp(word, "open") == 0)
        return BLK_OPEN;
    return word && strcmp(word, "empty") == 0 ? BLK_EMPTY : BLK_FAILED;
}

int blk_hello(struct blk_client *c, struct blk_hello *ret_hello, struct error *err)
{
    json_t *answer = NULL;
    int r = call(c, "hello", json_object(), NULL, 0, HELLO_MS, &answer, err);
    if (r < 0)
        return r;
    struct blk_hello h = {
        .protocol = (int)get_u64(answer, "protocol"),
        .pid = (pid_t)get_u64(answer, "pid"),
        .state = state_of(json_string_value(json_object_get(answer, "state"))),
        .size = get_u64(answer, "size"),
        .read_only = json_is_true(json_object_get(answer, "read_only")),
    };
    copy_string(h.version, sizeof(h.version), answer, "version");
    const json_t *exports = json_object_get(answer, "exports");
    for (size_t i = 0; i < json_array_size(exports) && h.export_count < BLK_EXPORTS_MAX; i++) {
        struct blk_export_state *e = &h.exports[h.export_count++];
        copy_string(e->name, sizeof(e->name), json_array_get(exports, i), "name");
        copy_string(e->kind, sizeof(e->kind), json_array_get(exports, i), "kind");
    }
    (void)drop_answer(answer);
    if (h.protocol < PROTOCOL)
        return error_set(err, EPROTO, "block server %d speaks no protocol that we know", (int)c->pid);
    *ret_hello = h;
    return 0;
}

int blk_open(struct blk_client *c, const struct blk_layer *layers, size_t count, bool read_only, uint64_t cache_bytes,
             struct blk_geometry *ret_geometry, struct error *err)
{
    int fds[BLK_LAYERS_MAX];
    json_t *answer = NULL;
    if (count == 0 || count > BLK_LAYERS_MAX)
        return error_set(err, EINVAL, "a chain has 1 to %d layers", BLK_LAYERS_MAX);
    json_t *request = json_pack("{s:o, s:b, s:I}", "layers", blk_layers_pack(layers, count, fds), "read_only",
                                read_only, "cache_bytes", (json_int_t)cache_bytes);
    int r = call(c, "open", request, fds, count, DISK_MS, &answer, err);
    if (r < 0)
        return r;
    *ret_geometry = (struct blk_geometry){
        .size = get_u64(answer, "size"),
        .alignment = (uint32_t)get_u64(answer, "alignment"),
        .preferred = (uint32_t)get_u64(answer, "preferred"),
    };
    (void)drop_answer(answer);
    return 0;
}

int blk_export(struct blk_client *c, const struct blk_export *export, int fd, struct error *err)
{
    json_t *request = json_pack("{s:s, s:s, s:I, s:b, s:b, s:s*}", "name", export->name, "kind", export->kind, "queues",
                                (json_int_t) export->queues, "read_only", export->read_only, "resumed", export->resumed,
                                "serial", export->serial);
    return call(c, "export", request, &fd, 1, STOP_MS, NULL, err);
}

int blk_unexport(struct blk_client *c, const char *name, struct error *err)
{
    return call(c, "unexport", json_pack("{s:s}", "name", name), NULL, 0, STOP_MS, NULL, err);
}

int blk_resize(struct blk_client *c, uint64_t size, struct error *err)
{
    return call(c, "resize", json_pack("{s:I}", "size", (json_int_t)size), NULL, 0, DISK_MS, NULL, err);
}

static int snapshot(struct blk_client *c, const char *id, const struct blk_layer *layer, const uint64_t *hold,
                    struct error *err)
{
    json_t *answer = NULL;
    json_t *request = json_pack("{s:s, s:s}", "layer_id", id, "format", layer->format);
    if (request && hold)
        (void)json_object_set_new(request, "hold", json_integer((json_int_t)*hold));
    int r = call(c, "snapshot", request, &layer->fd, 1, DISK_MS, &answer, err);
    if (r < 0)
        return r;
    c->snapshot_pause_us = get_u64(answer, "pause_us");
    (void)drop_answer(answer);
    return 0;
}

int blk_snapshot(struct blk_client *c, const char *id, const struct blk_layer *layer, struct error *err)
{
    return snapshot(c, id, layer, NULL, err);
}

int blk_snapshot_held(struct blk_client *c, const char *id, const struct blk_layer *layer, uint64_t token,
                      struct error *err)
{
    return snapshot(c, id, layer, &token, err);
}

int blk_hold(struct blk_client *c, unsigned deadline_ms, uint64_t *ret_token, struct error *err)
{
    json_t *answer = NULL;
    json_t *request = json_pack("{s:I}", "deadline_ms", (json_int_t)deadline_ms);
    int r = call(c, "hold", request, NULL, 0, DISK_MS, &answer, err);
    if (r < 0)
        return r;
    *ret_token = get_u64(answer, "token");
    (void)drop_answer(answer);
    return 0;
}

int blk_release(struct blk_client *c, uint64_t token, bool *ret_held, struct error *err)
{
    json_t *answer = NULL;
    int r = call(c, "release", json_pack("{s:I}", "token", (json_int_t)token), NULL, 0, HELLO_MS, &answer, err);
    if (r < 0)
        return r;
    if (ret_held)
        *ret_held = json_is_true(json_object_get(answer, "held"));
    (void)drop_answer(answer);
    return 0;
}

int blk_reflink(struct blk_client *c, const char *id, int fd, struct error *err)
{
    json_t *answer = NULL;
    int r = call(c, "reflink", json_pack("{s:s}", "layer_id", id), &fd, 1, DISK_MS, &answer, err);
    if (r < 0)
        return r;
    c->snapshot_pause_us = get_u64(answer, "pause_us");
    (void)drop_answer(answer);
    return 0;
}

uint64_t blk_snapshot_pause_us(const struct blk_client *c)
{
    return c->snapshot_pause_us;
}

int blk_rebase(struct blk_client *c, const struct blk_layer *layers, size_t count, struct error *err)
{
    int fds[BLK_LAYERS_MAX];
    if (count == 0 || count >= BLK_LAYERS_MAX)
        return error_set(err, EINVAL, "1 to %d layers can lie below the top", BLK_LAYERS_MAX - 1);
    json_t *request = json_pack("{s:o}", "layers", blk_layers_pack(layers, count, fds));
    return call(c, "rebase", request, fds, count, DISK_MS, NULL, err);
}

int blk_flush(struct blk_client *c, struct error *err)
{
    return call(c, "flush", json_object(), NULL, 0, DISK_MS, NULL, err);
}

int blk_policy(struct blk_client *c, const char *on_no_space, struct error *err)
{
    return call(c, "policy", json_pack("{s:s}", "on_no_space", on_no_space), NULL, 0, HELLO_MS, NULL, err);
}

int blk_stats(struct blk_client *c, json_t **ret_stats, struct error *err)
{
    json_t *answer = NULL;
    int r = call(c, "stats", json_object(), NULL, 0, HELLO_MS, &answer, err);
    if (r < 0)
        return r;
    (void)json_object_del(answer, "ok");
    (void)json_object_del(answer, "id");
    *ret_stats = answer;
    return 0;
}

/* ---- start and end --------------------------------------------------------------------------------------------- */

struct blk_client *blk_disconnect(struct blk_client *c)
{
    char how[48];
    if (!c)
        return NULL;
    c->socket = message_socket_destroy(c->socket);
    if (c->pidfd >= 0)
        (void)blk_process_wait(c->pidfd, 0, how);
    close_fd(&c->pidfd);
    free(c->path);
    free(c);
    return NULL;
}

static struct blk_client *new_client(const char *path)
{
    struct blk_client *c = calloc(1, sizeof(*c));
    if (!c)
        return NULL;
    c->pidfd = -1;
    c->path = strdup(path);
    return c->path ? c : blk_disconnect(c);
}

static void cleanup_client(struct blk_client **c)
{
    *c = blk_disconnect(*c);
}

/* Connect and greet; the server's number when it is known already, or 0. */
static int greet(struct blk_client *c, pid_t known, struct error *err)
{
    CLEANUP_CLOSE int fd = -1;
    struct ucred peer;
    socklen_t length = sizeof(peer);
    int r = connect_socket(c->path, &fd);
    if (r < 0)
        return error_sys(err, r, "connect to the block server at '%s'", c->path);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
        return error_sys(err, errno, "ask who serves '%s'", c->path);
    r = message_socket_create(fd, &c->socket);
    if (r < 0)
        return error_sys(err, r, "connect to the block server at '%s'", c->path);
    fd = -1;
    c->pid = known ? known : peer.pid;
    if (c->pidfd < 0)
        c->pidfd = pidfd_open(c->pid, 0);
    if (c->pidfd < 0)
        return error_sys(err, errno, "hold on to block server %d", (int)c->pid);
    struct blk_hello hello = {0};
    r = blk_hello(c, &hello, err);
    if (r == 0 && hello.pid != c->pid)
        r = error_set(err, EPROTO, "'%s' is served by process %d, not %d", c->path, (int)hello.pid, (int)c->pid);
    return r;
}

int blk_connect(const char *socket_path, struct blk_client **ret_client, struct error *err)
{
    CLEANUP(cleanup_client) struct blk_client *c = new_client(socket_path);
    if (!c)
        return error_sys(err, ENOMEM, "connect to '%s'", socket_path);
    int r = greet(c, 0, err);
    if (r == 0)
        *ret_client = steal_ptr(&c);
    return r;
}

int blk_spawn(const char *binary, const char *socket_path, struct blk_client **ret_client, struct error *err)
{
    CLEANUP(cleanup_client) struct blk_client *c = new_client(socket_path);
    CLEANUP_CLOSE int fd = -1;
    if (!c)
        return error_sys(err, ENOMEM, "start a block server");
    int r = bind_socket(socket_path, &fd);
    if (r < 0)
        return error_sys(err, r, "bind '%s'", socket_path);
    r = blk_process_start(binary, "serve", fd, &c->pid, &c->pidfd, err);
    if (r == 0) {
        close_fd(&fd); /* when the server dies, connecting must fail at once */
        r = greet(c, c->pid, err);
    }
    if (r < 0) {
        if (c->pidfd >= 0)
            (void)blk_process_kill(c->pidfd);
        (void)unlink(socket_path);
        return r;
    }
    *ret_client = steal_ptr(&c);
    return 0;
}

pid_t blk_pid(const struct blk_client *c)
{
    return c->pid;
}

int blk_pidfd(const struct blk_client *c)
{
    return c->pidfd;
}

int blk_close(struct blk_client *c, struct error *err)
{
    char how[48];
    int r = call(c, "close", json_object(), NULL, 0, DISK_MS, NULL, err);
    if (r == -ETIMEDOUT)
        return r;
    if (blk_process_wait(c->pidfd, EXIT_MS, how) < 0)
        return error_set(err, ETIMEDOUT, "block server %d does not end", (int)c->pid);
    (void)unlink(c->path);
    return r;
}

int blk_kill(struct blk_client *c, struct error *err)
{
    if (blk_process_kill(c->pidfd) < 0)
        return error_set(err, ETIMEDOUT, "block server %d does not die", (int)c->pid);
    (void)unlink(c->path);
    return 0;
}
