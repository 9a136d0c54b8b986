// SPDX-License-Identifier: Apache-2.0
/*
 * Lines of JSON with descriptors.
 *
 * Whose descriptors are they? A sender puts them on the first byte of a line. The kernel may hand over the end of one
 * line and the start of the next in one recvmsg, but never reads on behind bytes that carried descriptors: so
 * what a recvmsg brings belongs to the last line that it began. Each received descriptor is kept with that line's
 * number until the line is complete and taken.
 *
 * A receive that times out keeps what it has read and goes on with it at the next call; so an event loop may call
 * with a time-out of 0 until -ETIMEDOUT. A send that times out in the midst of a line has spoilt the stream: the
 * socket refuses every later send.
 */
#include "common/message.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "common/checked.h"
#include "common/cleanup.h"

struct message_socket {
    int fd;
    bool broken;   /* a line was sent in part */
    uint64_t line; /* number of the line that buffer[0] begins */
    size_t length; /* bytes in buffer */
    size_t fd_count;
    struct {
        int fd;
        uint64_t line;
    } fds[MESSAGE_FDS_MAX]; /* received, not yet taken; in order of arrival */
    char buffer[MESSAGE_LINE_MAX];
};

static int64_t now_ms(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static int64_t deadline_of(int timeout_ms)
{
    return timeout_ms < 0 ? -1 : now_ms() + timeout_ms;
}

/* Wait for `events` until the deadline (-1 = for ever). */
static int wait_ready(int fd, short events, int64_t deadline)
{
    for (;;) {
        int left = -1;
        if (deadline >= 0)
            left = (int)MIN(MAX(deadline - now_ms(), 0), INT_MAX);
        struct pollfd p = {.fd = fd, .events = events};
        int r = poll(&p, 1, left);
        if (r > 0)
            return 0;
        if (r == 0)
            return -ETIMEDOUT;
        if (errno != EINTR)
            return -errno;
    }
}

int message_socket_create(int fd, struct message_socket **ret_socket)
{
    struct message_socket *s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->fd = fd;
    *ret_socket = s;
    return 0;
}

static void drop_received_fds(struct message_socket *s)
{
    for (size_t i = 0; i < s->fd_count; i++)
        (void)close(s->fds[i].fd);
    s->fd_count = 0;
}

struct message_socket *message_socket_destroy(struct message_socket *s)
{
    if (!s)
        return NULL;
    drop_received_fds(s);
    close_fd(&s->fd);
    free(s);
    return NULL;
}

int message_socket_fd(const struct message_socket *s)
{
    return s->fd;
}

/* ---- sending ----------------------------------------------------------------------------------------------- */

union control {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int) * MESSAGE_FDS_MAX)];
};

/* One sendmsg, with the descriptors when count is not 0. Returns bytes or -errno. */
static ssize_t send_part(int fd, const char *bytes, size_t length, const int *fds, size_t count)
{
    union control control = {0};
    struct iovec iov = {.iov_base = (void *)bytes, .iov_len = length};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (count) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(sizeof(int) * count);
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(int) * count);
        memcpy(CMSG_DATA(cmsg), fds, sizeof(int) * count);
    }
    ssize_t n = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    return n < 0 ? -errno : n;
}

static int send_line(struct message_socket *s, const char *line, size_t length, const int *fds, size_t count,
                     int64_t deadline)
{
    size_t sent = 0;
    while (sent < length) {
        ssize_t n = send_part(s->fd, line + sent, length - sent, fds, sent ? 0 : count);
        if (n >= 0) {
            sent += (size_t)n;
            continue;
        }
        int r = (int)n;
        if (r == -EINTR)
            continue;
        if (r == -EAGAIN)
            r = wait_ready(s->fd, POLLOUT, deadline);
        if (r < 0) {
            s->broken = sent > 0;
            return r == -ECONNRESET || r == -ENOTCONN ? -EPIPE : r;
        }
    }
    return 0;
}

int message_send(struct message_socket *s, const json_t *object, const int *fds, size_t count, int timeout_ms,
                 struct error *err)
{
    if (!json_is_object(object) || count > MESSAGE_FDS_MAX)
        return error_set(err, EINVAL, "send message: not an object, or too many descriptors");
    if (s->broken)
        return error_set(err, EPIPE, "send message: the connection is broken");
    CLEANUP_FREE char *line = json_dumps(object, JSON_COMPACT);
    if (!line)
        return error_sys(err, ENOMEM, "send message");
    size_t length = strlen(line);
    if (length >= MESSAGE_LINE_MAX)
        return error_sys(err, EMSGSIZE, "send message of %zu bytes", length);
    line[length++] = '\n'; /* in place of the final NUL: what follows goes by length */
    int r = send_line(s, line, length, fds, count, deadline_of(timeout_ms));
    return r < 0 ? error_sys(err, r, "send message") : 0;
}

/* ---- receiving --------------------------------------------------------------------------------------------- */

static int bad_message(struct error *err, const char *what)
{
    return error_set(err, EBADMSG, "receive message: %s", what);
}

/* Take the descriptors of one recvmsg over; those that do not fit are closed. False when any was lost. */
static bool keep_fds(struct message_socket *s, struct msghdr *msg, uint64_t line)
{
    bool all = !(msg->msg_flags & MSG_CTRUNC);
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            if (s->fd_count < MESSAGE_FDS_MAX) {
                s->fds[s->fd_count].fd = fd;
                s->fds[s->fd_count++].line = line;
            } else {
                (void)close(fd);
                all = false;
            }
        }
    }
    return all;
}

/* The number of the last line that has begun in the buffer. */
static uint64_t last_begun_line(const struct message_socket *s)
{
    uint64_t line = s->line;
    for (size_t i = 0; i + 1 < s->length; i++)
        line += s->buffer[i] == '\n';
    return line;
}

/* One recvmsg into the buffer. */
static int receive_part(struct message_socket *s, int64_t deadline, struct error *err)
{
    union control control;
    for (;;) {
        struct iovec iov = {.iov_base = s->buffer + s->length, .iov_len = sizeof(s->buffer) - s->length};
        struct msghdr msg = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
        ssize_t n = recvmsg(s->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n > 0) {
            s->length += (size_t)n;
            if (keep_fds(s, &msg, last_begun_line(s)))
                return 0;
            drop_received_fds(s);
            return bad_message(err, "too many descriptors");
        }
        if (n == 0 || errno == ECONNRESET)
            return error_set(err, EPIPE, "receive message: the peer has gone");
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            return error_sys(err, errno, "receive message");
        int r = wait_ready(s->fd, POLLIN, deadline);
        if (r < 0)
            return error_sys(err, r, "receive message");
    }
}

/* Descriptors of the line just taken: to the caller if they are no more than `max`, else closed. */
static int take_fds(struct message_socket *s, uint64_t line, int *ret_fds, size_t max, size_t *ret_count)
{
    size_t mine = 0;
    while (mine < s->fd_count && s->fds[mine].line <= line)
        mine++;
    bool fits = mine <= max;
    for (size_t i = 0; i < mine; i++) {
        if (fits)
            ret_fds[i] = s->fds[i].fd;
        else
            (void)close(s->fds[i].fd);
    }
    s->fd_count -= mine;
    memmove(s->fds, s->fds + mine, s->fd_count * sizeof(s->fds[0]));
    if (!fits)
        return -EBADMSG;
    *ret_count = mine;
    return 0;
}

/* Cut the line of `length` bytes (with its newline) off the buffer. */
static void consume_line(struct message_socket *s, size_t length)
{
    s->length -= length;
    memmove(s->buffer, s->buffer + length, s->length);
    s->line++;
}

int message_receive(struct message_socket *s, json_t **ret_object, int *ret_fds, size_t max, size_t *ret_count,
                    int timeout_ms, struct error *err)
{
    int64_t deadline = deadline_of(timeout_ms);
    const char *end;
    size_t looked = 0;
    while (!(end = memchr(s->buffer + looked, '\n', s->length - looked))) {
        looked = s->length;
        if (s->length == sizeof(s->buffer))
            return bad_message(err, "the line is too long");
        int r = receive_part(s, deadline, err);
        if (r < 0)
            return r;
    }
    size_t length = (size_t)(end - s->buffer) + 1;
    json_t *object = json_loadb(s->buffer, length, JSON_REJECT_DUPLICATES, NULL);
    uint64_t line = s->line;
    consume_line(s, length);
    if (!json_is_object(object)) {
        json_decref(object);
        size_t none;
        (void)take_fds(s, line, NULL, 0, &none); /* closes them */
        return bad_message(err, "not a JSON object");
    }
    size_t count = 0;
    if (take_fds(s, line, ret_fds, max, &count) < 0) {
        json_decref(object);
        return bad_message(err, "unexpected descriptors");
    }
    *ret_object = object;
    if (ret_count)
        *ret_count = count;
    return 0;
}

/* ---- errors ------------------------------------------------------------------------------------------------ */

json_t *message_error(const struct error *err)
{
    json_t *object = json_pack("{s:i, s:s, s:s%}", "errno", err->errnum, "code", error_code_word(err), "message",
                               err->message, strlen(err->message));
    if (!object) /* the text is not UTF-8: a name from outside can be anything */
        object = json_pack("{s:i, s:s, s:s}", "errno", err->errnum, "code", error_code_word(err), "message",
                           "the message cannot be shown");
    if (object && err->holder[0])
        (void)json_object_set_new(object, "holder", json_string(err->holder));
    if (object && err->hint[0])
        (void)json_object_set_new(object, "hint", json_string(err->hint));
    return object;
}

int message_result(const json_t *answer, struct error *err)
{
    if (json_is_true(json_object_get(answer, "ok")))
        return 0;
    const json_t *error = json_object_get(answer, "error");
    json_int_t errnum = json_integer_value(json_object_get(error, "errno"));
    if (!json_is_object(error) || errnum <= 0 || errnum >= 4096)
        return error_set(err, EBADMSG, "the answer says neither ok nor error");
    const char *message = json_string_value(json_object_get(error, "message"));
    int r = error_set(err, (int)errnum, "%s", message ? message : "no message");
    const char *code = json_string_value(json_object_get(error, "code"));
    const char *holder = json_string_value(json_object_get(error, "holder"));
    const char *hint = json_string_value(json_object_get(error, "hint"));
    if (err && code)
        (void)error_code(err, code);
    if (err && holder)
        (void)error_holder(err, holder);
    if (err && hint)
        (void)error_hint(err, "%s", hint);
    return r;
}
