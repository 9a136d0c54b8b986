// SPDX-License-Identifier: Apache-2.0
/* The client against a peer that sends what it is told, whole or in single bytes, right or wrong. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/client.h"

struct peer {
    pthread_t thread;
    int listener;
    const char *answer; /* NULL: take the request and never answer */
    bool by_byte;
    char request[4096];
};

static char directory[] = "/tmp/platter-client.XXXXXX";
static char socket_path[64];
static struct peer peer;
static struct client *client;
static struct error err;
static struct client_reply reply;

static size_t body_expected(const char *request)
{
    const char *header = strstr(request, "Content-Length: ");
    return header ? strtoul(header + 16, NULL, 10) : 0;
}

static void read_request(int fd)
{
    size_t length = 0;
    for (;;) {
        ssize_t n = read(fd, peer.request + length, sizeof(peer.request) - 1 - length);
        if (n <= 0)
            return;
        length += (size_t)n;
        peer.request[length] = '\0';
        const char *end = strstr(peer.request, "\r\n\r\n");
        if (end && strlen(end + 4) >= body_expected(peer.request))
            return;
    }
}

static void *serve(void *arg)
{
    (void)arg;
    int fd = accept(peer.listener, NULL, NULL);
    if (fd < 0)
        return NULL;
    read_request(fd);
    if (!peer.answer) {
        char byte;
        (void)!read(fd, &byte, 1); /* until the client gives up */
    }
    for (size_t at = 0, length = peer.answer ? strlen(peer.answer) : 0; at < length;) {
        ssize_t n = send(fd, peer.answer + at, peer.by_byte ? 1 : length - at, MSG_NOSIGNAL);
        if (n <= 0)
            break;
        at += (size_t)n;
    }
    (void)close(fd);
    return NULL;
}

static void peer_answers(const char *answer, bool by_byte)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", socket_path);
    peer = (struct peer){.answer = answer, .by_byte = by_byte};
    peer.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(peer.listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(peer.listener, 8), 0);
    assert_int_equal(pthread_create(&peer.thread, NULL, serve, NULL), 0);
}

static void peer_ends(void)
{
    (void)pthread_join(peer.thread, NULL);
    (void)close(peer.listener);
    (void)unlink(socket_path);
}

static int set_up(void **state)
{
    (void)state;
    error_clear(&err);
    reply = (struct client_reply){0};
    return client_create(socket_path, &client, &err);
}

static int tear_down(void **state)
{
    (void)state;
    client_reply_clear(&reply);
    client = client_destroy(client);
    return 0;
}

static int ask(const char *answer, bool by_byte, int timeout_ms)
{
    peer_answers(answer, by_byte);
    int r = client_request(client, "GET", "/v1", NULL, timeout_ms, &reply, &err);
    peer_ends();
    return r;
}

static void test_object(void **state)
{
    (void)state;
    assert_int_equal(ask("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}", true, -1), 0);
    assert_int_equal(reply.status, 200);
    assert_int_equal(json_integer_value(json_object_get(reply.body, "a")), 1);
    assert_non_null(strstr(peer.request, "GET /v1 HTTP/1.1\r\n"));
}

static void test_post(void **state)
{
    (void)state;
    json_t *body = json_pack("{s:i}", "size", 4096);
    peer_answers("HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}", false);
    assert_int_equal(client_request(client, "POST", "/v1/volumes?wait=1", body, -1, &reply, &err), 0);
    peer_ends();
    json_decref(body);
    assert_int_equal(reply.status, 202);
    assert_non_null(strstr(peer.request, "POST /v1/volumes?wait=1 HTTP/1.1\r\n"));
    assert_non_null(strstr(peer.request, "\r\n\r\n{\"size\":4096}"));
}

static void test_error_parts(void **state)
{
    (void)state;
    static const char answer[] = "HTTP/1.1 409 Conflict\r\nConnection: close\r\n\r\n"
                                 "{\"error\":{\"code\":\"volume-in-use\",\"message\":\"volume 'db' is attached\","
                                 "\"holder\":\"vm att-1\",\"hint\":\"platter detach att-1\"}}";
    assert_int_equal(ask(answer, false, -1), -EBUSY);
    assert_string_equal(err.code, "volume-in-use");
    assert_string_equal(err.message, "volume 'db' is attached");
    assert_string_equal(err.holder, "vm att-1");
    assert_string_equal(err.hint, "platter detach att-1");
}

static void status_gives(int status, const char *code, int errnum)
{
    char answer[512];
    (void)snprintf(answer, sizeof(answer),
                   "HTTP/1.1 %d X\r\nConnection: close\r\n\r\n{\"error\":{\"code\":\"%s\",\"message\":\"m\"}}", status,
                   code);
    assert_int_equal(ask(answer, false, -1), -errnum);
}

static void test_statuses(void **state)
{
    (void)state;
    status_gives(404, "not-found", ENOENT);
    status_gives(409, "exists", EEXIST);
    status_gives(409, "pool-in-use", EBUSY);
    status_gives(409, "cancelled", ECANCELED);
    status_gives(400, "invalid", EINVAL);
    status_gives(422, "shrink-refused", EOPNOTSUPP);
    status_gives(403, "forbidden", EACCES);
    status_gives(507, "overprovisioned", ENOSPC);
    status_gives(504, "late", ETIMEDOUT);
    status_gives(500, "failed", EIO);
}

static void test_broken_answers(void **state)
{
    (void)state;
    assert_int_equal(ask("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"a\":", false, -1), -EBADMSG);
    assert_true(ask("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}", false, -1) < 0);
    assert_string_equal(err.code, CLIENT_UNREACHABLE);
    assert_true(ask("", false, -1) < 0);
    assert_int_equal(ask("HTTP/1.1 500 X\r\nConnection: close\r\n\r\n[]", false, -1), -EIO);
    assert_int_equal(ask(NULL, false, 50), -ETIMEDOUT);
    assert_null(reply.body);
}

static void test_unreachable(void **state)
{
    (void)state;
    assert_int_equal(client_request(client, "GET", "/v1", NULL, -1, &reply, &err), -ECONNREFUSED);
    assert_string_equal(err.code, CLIENT_UNREACHABLE);
    assert_non_null(strstr(err.message, socket_path));
}

struct lines {
    int count, stop_at, result;
    long long last;
};

static int on_line(json_t *line, void *context)
{
    struct lines *lines = context;
    lines->last = json_integer_value(json_object_get(line, "seq"));
    return ++lines->count == lines->stop_at ? lines->result : 0;
}

static int stream(const char *answer, struct lines *lines)
{
    peer_answers(answer, true);
    int r = client_stream(client, "/v1/events", on_line, lines, -1, &err);
    peer_ends();
    return r;
}

static void test_stream(void **state)
{
    (void)state;
    static const char answer[] =
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"seq\":1}\n\n{\"seq\":2}\n{\"seq\":3}\n";
    struct lines lines = {0};
    assert_int_equal(stream(answer, &lines), 0);
    assert_int_equal(lines.count, 3);
    assert_int_equal(lines.last, 3);
    lines = (struct lines){.stop_at = 2, .result = 1};
    assert_int_equal(stream(answer, &lines), 0);
    assert_int_equal(lines.last, 2);
    lines = (struct lines){.stop_at = 1, .result = -EPIPE};
    assert_int_equal(stream(answer, &lines), -EPIPE);
}

static void test_stream_errors(void **state)
{
    (void)state;
    struct lines lines = {0};
    assert_int_equal(stream("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nnonsense\n", &lines), -EBADMSG);
    assert_int_equal(
        stream("HTTP/1.1 403 X\r\nConnection: close\r\n\r\n{\"error\":{\"code\":\"forbidden\",\"message\":\"no\"}}",
               &lines),
        -EACCES);
    assert_int_equal(lines.count, 0);
}

static void test_escape(void **state)
{
    (void)state;
    char *escaped = client_escape("a/b c%?#\xc3\xa9.-_~");
    assert_string_equal(escaped, "a%2Fb%20c%25%3F%23%C3%A9.-_~");
    free(escaped);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_object, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_post, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_error_parts, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_statuses, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_broken_answers, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_unreachable, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_stream, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_stream_errors, set_up, tear_down),
        cmocka_unit_test(test_escape),
    };
    if (!mkdtemp(directory))
        return 1;
    (void)snprintf(socket_path, sizeof(socket_path), "%s/s", directory);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    (void)rmdir(directory);
    return failed;
}
