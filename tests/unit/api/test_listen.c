// SPDX-License-Identifier: Apache-2.0
/* The listening socket (mode, stale, taken, foreign) and who is seen at its other end. */
#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "provisioner/api/caller.h"
#include "provisioner/api/listen.h"

static char directory[] = "/tmp/platter-listen.XXXXXX";
static struct config config;
static struct error err;

static int set_up(void **state)
{
    (void)state;
    char path[PATH_MAX];
    (void)snprintf(path, sizeof(path), "%s/s", directory);
    error_clear(&err);
    if (config_init(&config) < 0 || config_set(&config, "platterd", "socket", path, &err) < 0 ||
        config_set(&config, "access", "group", "", &err) < 0)
        return -1;
    return config_complete(&config, &err);
}

static int tear_down(void **state)
{
    (void)state;
    (void)unlink(config.socket);
    config_clear(&config);
    return 0;
}

static void test_made_with_its_mode(void **state)
{
    (void)state;
    int fd = -1;
    bool own = false;
    struct stat st;
    mode_t before = umask(0);
    (void)umask(before);
    assert_int_equal(listen_open(&config, &fd, &own, &err), 0);
    assert_true(own);
    assert_int_equal(stat(config.socket, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0660);
    assert_int_equal(umask(before), before);
    (void)close(fd);
}

static void test_stale_is_replaced_and_taken_is_not(void **state)
{
    (void)state;
    int first = -1, second = -1;
    bool own;
    assert_int_equal(listen_open(&config, &first, &own, &err), 0);
    assert_int_equal(listen_open(&config, &second, &own, &err), -EBUSY);
    assert_string_equal(err.code, "already-running");
    assert_int_equal(access(config.socket, F_OK), 0);
    (void)close(first);
    assert_int_equal(listen_open(&config, &second, &own, &err), 0);
    (void)close(second);
}

static void test_no_socket_is_left_alone(void **state)
{
    (void)state;
    int fd;
    bool own;
    FILE *file = fopen(config.socket, "w");
    assert_non_null(file);
    (void)fclose(file);
    assert_int_equal(listen_open(&config, &fd, &own, &err), -EEXIST);
    assert_int_equal(access(config.socket, F_OK), 0);
}

static void test_caller(void **state)
{
    (void)state;
    int pair[2];
    struct caller caller;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(caller_identify(pair[0], &config, &caller, &err), 0);
    assert_int_equal(caller.uid, geteuid());
    assert_int_equal(caller.pid, getpid());
    assert_int_equal(caller.role, CALLER_ADMIN); /* the daemon's own user */
    int count = getgroups(0, NULL);
    assert_int_equal(caller.group_count, count > CALLER_GROUPS_MAX ? CALLER_GROUPS_MAX : count);
    (void)close(pair[0]);
    (void)close(pair[1]);
    assert_int_equal(caller_identify(-1, &config, &caller, &err), -EACCES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_made_with_its_mode, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_stale_is_replaced_and_taken_is_not, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_no_socket_is_left_alone, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_caller, set_up, tear_down),
    };
    if (!mkdtemp(directory))
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    (void)rmdir(directory);
    return failed;
}
