// SPDX-License-Identifier: Apache-2.0
/*
 * The control thread of the block server.
 *
 * Several connections may be open: a platterd that died leaves one behind until its end is seen, and the next one must
 * not wait for that. Requests are handled in the order in which they arrive, each to its end. A connection that sends
 * half a line holds nothing up: reading never waits.
 */
#include "provisioner/blk/server.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "common/log.h"
#include "common/message.h"
#include "provisioner/blk/blocking.h"
#include "provisioner/blk/exports.h"
#include "provisioner/blk/hold.h"
#include "provisioner/blk/members.h"
#include "provisioner/blk/snapshot.h"

enum {
    PROTOCOL = 1,
    CONNECTIONS_MAX = 4,
    SEND_TIMEOUT_MS = 5000,
};

struct server {
    int listen_fd;
    int signal_fd;
    struct message_socket *connections[CONNECTIONS_MAX]; /* NULL = free */
    struct image *image;                                 /* NULL = none open */
    bool open_failed;
    struct snapshots snapshots;
    struct hold hold;
    bool wait_for_space; /* the policy; not while exports end */
    struct exports exports;
    bool ending;
    int exit_status;
};

/* One request while it is handled. Descriptors that stay in `fds` are closed when it is answered. */
struct call {
    const json_t *request;
    const struct message_socket *from; /* to be compared only */
    int fds[MESSAGE_FDS_MAX];
    size_t fd_count;
    json_t *answer; /* members to be added */
};

static int need_image(struct server *s, struct error *err)
{
    return s->image ? 0 : error_set(err, EINVAL, "no image is open");
}

static int refuse_descriptors(const struct call *call, struct error *err)
{
    return call->fd_count ? error_set(err, EINVAL, "this request takes no descriptors") : 0;
}

static int add_member(struct call *call, const char *name, json_t *value, struct error *err)
{
    return json_object_set_new(call->answer, name, value) < 0 ? error_sys(err, ENOMEM, "answer") : 0;
}

/* ---- the requests ------------------------------------------------------------------------------------------ */

/* {"state": "ok" | "no-space" | "failed", "cause", "waiting", "refused"} */
static json_t *describe_condition(const struct server *s)
{
    struct image_condition c = {0};
    if (s->image)
        image_condition(s->image, &c);
    const char *state = c.failed ? "failed" : c.waiting ? "no-space" : "ok";
    return json_pack("{s:s, s:s*, s:I, s:I}", "state", state, "cause", c.failed ? strerror(-c.failed) : NULL, "waiting",
                     (json_int_t)c.waiting, "refused", (json_int_t)c.refused);
}

static int do_hello(struct server *s, struct call *call, struct error *err)
{
    struct image_geometry geometry = {0};
    const char *state = s->open_failed ? "failed" : "empty";
    if (s->image) {
        image_geometry(s->image, &geometry);
        state = "open";
    }
    json_t *members =
        json_pack("{s:i, s:s, s:i, s:s, s:I, s:b, s:o, s:o}", "protocol", PROTOCOL, "version", PLATTER_VERSION, "pid",
                  (int)getpid(), "state", state, "size", (json_int_t)geometry.size, "read_only", geometry.read_only,
                  "exports", exports_describe(&s->exports, false), "condition", describe_condition(s));
    if (!members || json_object_update_new(call->answer, members) < 0)
        return error_sys(err, ENOMEM, "answer");
    return 0;
}

static int answer_geometry(struct server *s, struct call *call, struct error *err)
{
    struct image_geometry geometry;
    image_geometry(s->image, &geometry);
    int r = add_member(call, "size", json_integer((json_int_t)geometry.size), err);
    if (r == 0)
        r = add_member(call, "alignment", json_integer(geometry.alignment), err);
    return r < 0 ? r : add_member(call, "preferred", json_integer(geometry.preferred), err);
}

static int do_open(struct server *s, struct call *call, struct error *err)
{
    if (s->image)
        return error_set(err, EBUSY, "an image is open already");
    struct image_options options = {0};
    uint64_t cache_bytes = 0;
    int r = member_bool(call->request, "read_only", &options.read_only, err);
    if (r == 0)
        r = member_u64(call->request, "cache_bytes", UINT64_C(64) * GIB, &cache_bytes, err);
    if (r < 0)
        return r;
    options.cache_bytes = (size_t)cache_bytes;
    struct layer_list list;
    r = layers_take(call->request, "layers", call->fds, call->fd_count, !options.read_only, &list, err);
    if (r == 0) {
        snapshots_begin(&s->snapshots, &list);
        r = layers_open_image(&list, &options, &s->image, err);
        layers_close(&list);
    }
    s->open_failed = r < 0;
    if (r < 0) {
        s->image = NULL;
        return r;
    }
    return answer_geometry(s, call, err);
}

static int do_export(struct server *s, struct call *call, struct error *err)
{
    int r = need_image(s, err);
    if (r < 0)
        return r;
    if (call->fd_count != 1)
        return error_set(err, EINVAL, "an export takes one descriptor");
    return exports_start(&s->exports, s->image, call->request, &call->fds[0], err);
}

static int do_unexport(struct server *s, struct call *call, struct error *err)
{
    const char *name;
    int r = member_required_string(call->request, "name", EXPORT_NAME_MAX, &name, err);
    if (r < 0)
        return r;
    /* The export's requests must end; those of others that wait end with them. */
    if (s->image)
        image_wait_for_space(s->image, false);
    r = exports_stop(&s->exports, name, err);
    if (s->image)
        image_wait_for_space(s->image, s->wait_for_space);
    return r;
}

static int do_resize(struct server *s, struct call *call, struct error *err)
{
    uint64_t size;
    int r = need_image(s, err);
    if (r == 0)
        r = member_u64(call->request, "size", INT64_MAX, &size, err);
    if (r == 0)
        r = image_resize(s->image, size, err);
    if (r < 0)
        return r;
    exports_resized(&s->exports, size);
    return 0;
}

static int do_snapshot(struct server *s, struct call *call, struct error *err)
{
    int r = need_image(s, err);
    if (r < 0)
        return r;
    if (call->fd_count != 1)
        return error_set(err, EINVAL, "a snapshot takes one descriptor");
    r = hold_check(&s->hold, call->request, err);
    if (r < 0)
        return r;
    return snapshots_take(&s->snapshots, s->image, call->request, &call->fds[0], call->answer, err);
}

static int do_hold(struct server *s, struct call *call, struct error *err)
{
    int r = need_image(s, err);
    return r < 0 ? r : hold_begin(&s->hold, s->image, call->from, call->request, call->answer, err);
}

static int do_release(struct server *s, struct call *call, struct error *err)
{
    return hold_release(&s->hold, call->request, call->answer, err);
}

static int do_reflink(struct server *s, struct call *call, struct error *err)
{
    int r = need_image(s, err);
    if (r < 0)
        return r;
    if (call->fd_count != 1)
        return error_set(err, EINVAL, "a reflink takes one descriptor");
    return snapshots_reflink(&s->snapshots, s->image, call->request, call->fds[0], call->answer, err);
}

static int do_rebase(struct server *s, struct call *call, struct error *err)
{
    int r = need_image(s, err);
    return r < 0 ? r : snapshots_rebase(&s->snapshots, s->image, call->request, call->fds, call->fd_count, err);
}

static int do_flush(struct server *s, struct call *call, struct error *err)
{
    (void)call;
    int r = need_image(s, err);
    return r < 0 ? r : blocking_flush_once(s->image, err);
}

/* Another policy from now on; what waits ends when it is to fail. */
static int do_policy(struct server *s, struct call *call, struct error *err)
{
    const char *policy = NULL;
    int r = need_image(s, err);
    if (r == 0)
        r = member_required_string(call->request, "on_no_space", 15, &policy, err);
    if (r < 0)
        return r;
    if (strcmp(policy, "pause") != 0 && strcmp(policy, "fail") != 0)
        return error_set(err, EINVAL, "on_no_space must be pause or fail");
    s->wait_for_space = strcmp(policy, "pause") == 0;
    image_wait_for_space(s->image, s->wait_for_space);
    return 0;
}

static int do_stats(struct server *s, struct call *call, struct error *err)
{
    int r = add_member(call, "condition", describe_condition(s), err);
    return r < 0 ? r : add_member(call, "exports", exports_describe(&s->exports, true), err);
}

static int do_close(struct server *s, struct call *call, struct error *err)
{
    (void)call;
    if (s->image)
        image_wait_for_space(s->image, false);
    exports_stop_all(&s->exports);
    int r = image_close(steal_ptr(&s->image), err);
    s->ending = true;
    s->exit_status = r < 0;
    return r;
}

/* What becomes of a request, or of the hold, while the image is held: most would wait for its end, which needs us. */
enum when_held { HELD_REFUSED, HELD_GOES_ON, HELD_ENDS };

static const struct {
    const char *op;
    bool takes_descriptors;
    enum when_held when_held;
    int (*handle)(struct server *s, struct call *call, struct error *err);
} requests[] = {
    {"hello", false, HELD_GOES_ON, do_hello},   {"open", true, HELD_REFUSED, do_open},
    {"export", true, HELD_REFUSED, do_export},  {"unexport", false, HELD_ENDS, do_unexport},
    {"resize", false, HELD_REFUSED, do_resize}, {"snapshot", true, HELD_GOES_ON, do_snapshot},
    {"hold", false, HELD_GOES_ON, do_hold},     {"release", false, HELD_GOES_ON, do_release},
    {"rebase", true, HELD_REFUSED, do_rebase},  {"flush", false, HELD_REFUSED, do_flush},
    {"policy", false, HELD_GOES_ON, do_policy}, {"stats", false, HELD_GOES_ON, do_stats},
    {"close", false, HELD_ENDS, do_close},      {"reflink", true, HELD_REFUSED, do_reflink},
};

static int check_held(struct server *s, enum when_held when_held, struct error *err)
{
    hold_expire(&s->hold);
    if (when_held == HELD_ENDS)
        hold_end(&s->hold);
    return s->hold.image && when_held == HELD_REFUSED
               ? error_set(err, EBUSY, "the image is held for a group's snapshot")
               : 0;
}

static int handle(struct server *s, struct call *call, struct error *err)
{
    const char *op;
    int r = member_required_string(call->request, "op", 31, &op, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        if (strcmp(requests[i].op, op) != 0)
            continue;
        r = requests[i].takes_descriptors ? 0 : refuse_descriptors(call, err);
        if (r == 0)
            r = check_held(s, requests[i].when_held, err);
        return r < 0 ? r : requests[i].handle(s, call, err);
    }
    return error_set(err, EOPNOTSUPP, "unknown request '%s'", op);
}

/* ---- connections ------------------------------------------------------------------------------------------- */

/* Handle one request and answer it. An error means that the connection is of no more use. */
static int serve_call(struct server *s, struct message_socket *connection, struct call *call)
{
    struct error err = ERROR_INIT;
    call->answer = json_object();
    if (!call->answer)
        return -ENOMEM;
    int r = handle(s, call, &err);
    for (size_t i = 0; i < call->fd_count; i++)
        close_fd(&call->fds[i]);
    if (r < 0) {
        const char *op = json_string_value(json_object_get(call->request, "op"));
        log_warning("%s: %s", op ? op : "request", err.message);
        (void)json_object_clear(call->answer);
        (void)json_object_set_new(call->answer, "error", message_error(&err));
    } else {
        (void)json_object_set_new(call->answer, "ok", json_true());
    }
    (void)json_object_set(call->answer, "id", json_object_get(call->request, "id"));
    r = message_send(connection, call->answer, NULL, 0, SEND_TIMEOUT_MS, &err);
    json_decref(call->answer);
    return r;
}

/* Handle all that has arrived. */
static int serve_connection(struct server *s, struct message_socket *connection)
{
    while (!s->ending) {
        struct call call = {0};
        json_t *request = NULL;
        struct error err = ERROR_INIT;
        int r = message_receive(connection, &request, call.fds, MESSAGE_FDS_MAX, &call.fd_count, 0, &err);
        if (r == -ETIMEDOUT)
            return 0;
        if (r < 0) {
            if (r != -EPIPE)
                log_warning("control connection: %s", err.message);
            return r;
        }
        call.request = request;
        call.from = connection;
        r = serve_call(s, connection, &call);
        json_decref(request);
        if (r < 0)
            return r;
    }
    return 0;
}

static bool peer_is_allowed(int fd)
{
    struct ucred peer;
    socklen_t length = sizeof(peer);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
        return false;
    return peer.uid == 0 || peer.uid == geteuid();
}

static void drop_connection(struct server *s, size_t place)
{
    hold_end_of(&s->hold, s->connections[place]);
    s->connections[place] = message_socket_destroy(s->connections[place]);
}

/* Where a new connection goes: a free place, or that of the oldest. */
static size_t connection_place(struct server *s)
{
    for (size_t i = 0; i < CONNECTIONS_MAX; i++) {
        if (!s->connections[i])
            return i;
    }
    drop_connection(s, 0);
    for (size_t i = 1; i < CONNECTIONS_MAX; i++)
        s->connections[i - 1] = s->connections[i];
    s->connections[CONNECTIONS_MAX - 1] = NULL;
    return CONNECTIONS_MAX - 1;
}

static void accept_connection(struct server *s)
{
    CLEANUP_CLOSE int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0 || !peer_is_allowed(fd))
        return;
    struct message_socket *connection;
    if (message_socket_create(fd, &connection) < 0)
        return;
    fd = -1;
    s->connections[connection_place(s)] = connection;
}

/* One turn: wait for something to happen and handle it. */
static int server_turn(struct server *s)
{
    struct pollfd fds[2 + CONNECTIONS_MAX] = {
        {.fd = s->listen_fd, .events = POLLIN},
        {.fd = s->signal_fd, .events = POLLIN},
    };
    for (size_t i = 0; i < CONNECTIONS_MAX; i++) {
        struct message_socket *c = s->connections[i];
        fds[2 + i] = (struct pollfd){.fd = c ? message_socket_fd(c) : -1, .events = POLLIN};
    }
    if (poll(fds, ARRAY_SIZE(fds), hold_timeout(&s->hold)) < 0)
        return errno == EINTR ? 0 : -errno;
    for (size_t i = 0; i < CONNECTIONS_MAX && !s->ending; i++) {
        if (fds[2 + i].revents && serve_connection(s, s->connections[i]) < 0)
            drop_connection(s, i);
    }
    hold_expire(&s->hold);
    if (!s->ending && fds[1].revents) {
        struct error err = ERROR_INIT;
        struct call none = {0};
        hold_end(&s->hold);
        if (do_close(s, &none, &err) < 0)
            log_error("close: %s", err.message);
    }
    if (!s->ending && fds[0].revents)
        accept_connection(s);
    return 0;
}

int server_run(int listen_fd)
{
    struct server s = {.listen_fd = listen_fd, .signal_fd = -1, .exit_status = 1};
    sigset_t mask;
    (void)sigemptyset(&mask);
    (void)sigaddset(&mask, SIGTERM);
    s.signal_fd = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
    int r = s.signal_fd < 0 ? -errno : 0;
    while (r == 0 && !s.ending)
        r = server_turn(&s);
    if (r < 0)
        log_error("control loop: %s", strerror(-r));
    hold_end(&s.hold);
    exports_stop_all(&s.exports);
    (void)image_close(s.image, NULL); /* NULL after "close"; else the loop failed and was reported */
    for (size_t i = 0; i < CONNECTIONS_MAX; i++)
        s.connections[i] = message_socket_destroy(s.connections[i]);
    close_fd(&s.signal_fd);
    close_fd(&s.listen_fd);
    return s.exit_status;
}
