// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/message.h"

struct pair {
    struct message_socket *a, *b;
};

static int open_pair(void **state)
{
    static struct pair pair;
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    assert_int_equal(message_socket_create(fds[0], &pair.a), 0);
    assert_int_equal(message_socket_create(fds[1], &pair.b), 0);
    *state = &pair;
    return 0;
}

static int close_pair(void **state)
{
    struct pair *pair = *state;
    pair->a = message_socket_destroy(pair->a);
    pair->b = message_socket_destroy(pair->b);
    return 0;
}

static int count_open_fds(void)
{
    int count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void send_raw(struct message_socket *s, const char *bytes, size_t length)
{
    assert_int_equal(write(message_socket_fd(s), bytes, length), length);
}

static void send_number(struct message_socket *s, int number, const int *fds, size_t count)
{
    json_t *object = json_pack("{s:i}", "n", number);
    assert_int_equal(message_send(s, object, fds, count, 1000, NULL), 0);
    json_decref(object);
}

/* Receive {"n": number} and return how many descriptors came with it. */
static size_t expect_number(struct message_socket *s, int number, int *fds, size_t max)
{
    json_t *object = NULL;
    size_t count = 99;
    struct error err = ERROR_INIT;
    assert_int_equal(message_receive(s, &object, fds, max, &count, 1000, &err), 0);
    assert_int_equal(json_integer_value(json_object_get(object, "n")), number);
    json_decref(object);
    return count;
}

static void descriptors_stay_with_their_line(void **state)
{
    struct pair *pair = *state;
    int pipes[2], fds[MESSAGE_FDS_MAX];
    assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
    struct stat want, got;
    assert_int_equal(fstat(pipes[0], &want), 0);
    send_number(pair->a, 1, NULL, 0);
    send_number(pair->a, 2, pipes, 1);
    send_number(pair->a, 3, NULL, 0);
    send_number(pair->a, 4, (int[]){pipes[1], pipes[0], pipes[1]}, 3);
    assert_int_equal(expect_number(pair->b, 1, fds, MESSAGE_FDS_MAX), 0);
    assert_int_equal(expect_number(pair->b, 2, fds, MESSAGE_FDS_MAX), 1);
    assert_int_equal(fstat(fds[0], &got), 0);
    assert_int_equal(got.st_ino, want.st_ino);
    assert_int_equal(fcntl(fds[0], F_GETFD), FD_CLOEXEC);
    (void)close(fds[0]);
    assert_int_equal(expect_number(pair->b, 3, fds, MESSAGE_FDS_MAX), 0);
    assert_int_equal(expect_number(pair->b, 4, fds, MESSAGE_FDS_MAX), 3);
    for (int i = 0; i < 3; i++)
        (void)close(fds[i]);
    (void)close(pipes[0]);
    (void)close(pipes[1]);
}

static void more_descriptors_than_asked_for_are_closed(void **state)
{
    struct pair *pair = *state;
    int pipes[2], fds[2];
    assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
    int before = count_open_fds();
    send_number(pair->a, 1, (int[]){pipes[0], pipes[1], pipes[0]}, 3);
    send_number(pair->a, 2, pipes, 2);
    json_t *object = NULL;
    size_t count;
    assert_int_equal(message_receive(pair->b, &object, fds, 2, &count, 1000, NULL), -EBADMSG);
    assert_int_equal(count_open_fds(), before);
    assert_int_equal(expect_number(pair->b, 2, fds, 2), 2);
    (void)close(fds[0]);
    (void)close(fds[1]);
    send_number(pair->a, 3, pipes, 2);
    assert_int_equal(message_receive(pair->b, &object, NULL, 0, NULL, 1000, NULL), -EBADMSG);
    assert_int_equal(count_open_fds(), before);
    (void)close(pipes[0]);
    (void)close(pipes[1]);
}

static void descriptors_not_taken_are_closed_with_the_socket(void **state)
{
    struct pair *pair = *state;
    int pipes[2];
    assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
    int before = count_open_fds();
    send_number(pair->a, 1, NULL, 0);
    send_number(pair->a, 2, pipes, 2);
    assert_int_equal(expect_number(pair->b, 1, NULL, 0), 0);
    pair->b = message_socket_destroy(pair->b);
    assert_int_equal(count_open_fds(), before - 1);
    (void)close(pipes[0]);
    (void)close(pipes[1]);
}

static void too_many_descriptors_leak_nothing(void **state)
{
    struct pair *pair = *state;
    int before = count_open_fds();
    int many[MESSAGE_FDS_MAX + 3];
    for (size_t i = 0; i < MESSAGE_FDS_MAX + 3; i++)
        many[i] = 0;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(many))];
    } control = {0};
    struct iovec iov = {.iov_base = (char[]){"{\"n\":1}\n"}, .iov_len = 8};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(many));
    memcpy(CMSG_DATA(cmsg), many, sizeof(many));
    assert_int_equal(sendmsg(message_socket_fd(pair->a), &msg, 0), 8);
    json_t *object = NULL;
    int fds[MESSAGE_FDS_MAX];
    assert_int_equal(message_receive(pair->b, &object, fds, MESSAGE_FDS_MAX, NULL, 1000, NULL), -EBADMSG);
    assert_int_equal(count_open_fds(), before);
}

static void a_line_in_pieces_survives_time_outs(void **state)
{
    struct pair *pair = *state;
    json_t *object = NULL;
    assert_int_equal(message_receive(pair->b, &object, NULL, 0, NULL, 0, NULL), -ETIMEDOUT);
    send_raw(pair->a, "{\"n\"", 4);
    assert_int_equal(message_receive(pair->b, &object, NULL, 0, NULL, 0, NULL), -ETIMEDOUT);
    send_raw(pair->a, ":7}\n{\"n\":8", 10);
    assert_int_equal(expect_number(pair->b, 7, NULL, 0), 0);
    assert_int_equal(message_receive(pair->b, &object, NULL, 0, NULL, 10, NULL), -ETIMEDOUT);
    send_raw(pair->a, "}\n", 2);
    assert_int_equal(expect_number(pair->b, 8, NULL, 0), 0);
    pair->a = message_socket_destroy(pair->a);
    assert_int_equal(message_receive(pair->b, &object, NULL, 0, NULL, -1, NULL), -EPIPE);
    json_t *empty = json_object();
    assert_int_equal(message_send(pair->b, empty, NULL, 0, -1, NULL), -EPIPE);
    json_decref(empty);
}

static void what_is_no_object_is_refused(void **state)
{
    struct pair *pair = *state;
    static const char *const bad[] = {"[]\n",   "\n", "x\n", "{\"a\":1,\"a\":2}\n", "{}x\n", "{\"a\":\"\\u0000\"}\n",
                                      "\"s\"\n"};
    json_t *object = NULL;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        send_raw(pair->a, bad[i], strlen(bad[i]));
        assert_int_equal(message_receive(pair->b, &object, NULL, 0, NULL, 1000, NULL), -EBADMSG);
    }
    send_number(pair->a, 5, NULL, 0);
    assert_int_equal(expect_number(pair->b, 5, NULL, 0), 0);
}

static void lines_are_bounded(void **state)
{
    struct pair *pair = *state;
    static char big[MESSAGE_LINE_MAX];
    memset(big, ' ', sizeof(big));
    int size = 4 * MESSAGE_LINE_MAX;
    assert_int_equal(setsockopt(message_socket_fd(pair->a), SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)), 0);
    send_raw(pair->a, big, sizeof(big));
    json_t *object = NULL;
    assert_int_equal(message_receive(pair->b, &object, NULL, 0, NULL, 1000, NULL), -EBADMSG);
    memset(big, 'x', sizeof(big));
    object = json_pack("{s:s%}", "text", big, sizeof(big));
    assert_int_equal(message_send(pair->b, object, NULL, 0, 1000, NULL), -EMSGSIZE);
    json_decref(object);
}

static void a_full_socket_times_out_and_stays_broken(void **state)
{
    struct pair *pair = *state;
    static char big[60000];
    memset(big, 'x', sizeof(big));
    json_t *object = json_pack("{s:s%}", "text", big, sizeof(big));
    int size = 4096;
    assert_int_equal(setsockopt(message_socket_fd(pair->a), SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)), 0);
    assert_int_equal(message_send(pair->a, object, NULL, 0, 20, NULL), -ETIMEDOUT);
    assert_int_equal(message_send(pair->a, object, NULL, 0, 20, NULL), -EPIPE);
    json_decref(object);
}

static void errors_travel_whole(void **state)
{
    (void)state;
    struct error err = ERROR_INIT, got = ERROR_INIT;
    (void)error_sys(&err, EBUSY, "open 'a'");
    (void)error_code(&err, "image-in-use");
    (void)error_holder(&err, "vm1");
    (void)error_hint(&err, "stop %s", "vm1");
    json_t *answer = json_pack("{s:i, s:o}", "id", 1, "error", message_error(&err));
    assert_int_equal(message_result(answer, &got), -EBUSY);
    assert_memory_equal(&err, &got, sizeof(err));
    assert_int_equal(message_result(answer, NULL), -EBUSY);
    json_decref(answer);
    answer = json_pack("{s:b}", "ok", 1);
    assert_int_equal(message_result(answer, &got), 0);
    json_decref(answer);
    answer = json_pack("{s:{s:i}}", "error", "errno", 0);
    assert_int_equal(message_result(answer, &got), -EBADMSG);
    json_decref(answer);
    (void)error_set(&err, EIO, "name \xff\xfe");
    json_t *object = message_error(&err);
    assert_int_equal(json_integer_value(json_object_get(object, "errno")), EIO);
    json_decref(object);
}

int main(void)
{
#define PAIR_TEST(name) cmocka_unit_test_setup_teardown(name, open_pair, close_pair)
    const struct CMUnitTest tests[] = {
        PAIR_TEST(descriptors_stay_with_their_line),
        PAIR_TEST(more_descriptors_than_asked_for_are_closed),
        PAIR_TEST(descriptors_not_taken_are_closed_with_the_socket),
        PAIR_TEST(too_many_descriptors_leak_nothing),
        PAIR_TEST(a_line_in_pieces_survives_time_outs),
        PAIR_TEST(what_is_no_object_is_refused),
        PAIR_TEST(lines_are_bounded),
        PAIR_TEST(a_full_socket_times_out_and_stays_broken),
        cmocka_unit_test(errors_travel_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
