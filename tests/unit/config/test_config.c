// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/config.h"

static char directory[] = "/tmp/platter-config.XXXXXX";
static struct config config;
static struct error err;

static void path_of(const char *name, char path[PATH_MAX])
{
    (void)snprintf(path, PATH_MAX, "%s/%s", directory, name);
}

static void put(const char *name, const char *text)
{
    char path[PATH_MAX];
    path_of(name, path);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void removed(const char *name)
{
    char path[PATH_MAX];
    path_of(name, path);
    (void)remove(path);
}

static int read_main(void)
{
    char path[PATH_MAX];
    path_of("platterd.conf", path);
    return config_read(&config, path, 1, &err);
}

static int set_up(void **state)
{
    (void)state;
    char path[PATH_MAX];
    path_of("conf.d", path);
    error_clear(&err);
    return mkdir(path, 0700) || config_init(&config);
}

static int tear_down(void **state)
{
    (void)state;
    removed("platterd.conf");
    removed("conf.d/10-a.conf");
    removed("conf.d/20-b.conf");
    removed("conf.d/30-c.conf.bak");
    removed("conf.d");
    config_clear(&config);
    return 0;
}

static void test_defaults(void **state)
{
    (void)state;
    char path[PATH_MAX];
    path_of("platterd.conf", path);
    assert_int_equal(config_read(&config, path, 0, &err), 0);
    assert_int_equal(config_complete(&config, &err), 0);
    assert_string_equal(config.state_dir, "/var/lib/platter");
    assert_string_equal(config.socket, "/run/platter/platter.sock");
    assert_int_equal(config.socket_mode, 0660);
    assert_int_equal(config.log_level, LOG_LEVEL_INFO);
    assert_int_equal(config_read(&config, path, 1, &err), -ENOENT);
}

static void test_values_and_overrides(void **state)
{
    (void)state;
    put("platterd.conf",
        "# a comment\n[platterd]\nstate_dir = /a\nruntime_dir=/r ; comment\nworkers = 3\nmerge_rate = 7\n"
        "[access]\ngroup = root\nsocket_mode = 0666\nviewers = 1000, @1001 root\n");
    put("conf.d/20-b.conf", "[platterd]\nstate_dir = /second\n");
    put("conf.d/10-a.conf", "[platterd]\nstate_dir = /first\nlog_level = debug\n");
    put("conf.d/30-c.conf.bak", "nonsense\n");
    if (read_main() < 0)
        fail_msg("%s", err.message);
    assert_int_equal(config_complete(&config, &err), 0);
    assert_string_equal(config.state_dir, "/second");
    assert_string_equal(config.socket, "/r/platter.sock");
    assert_int_equal(config.workers, 3);
    assert_int_equal(config.merge_rate, 7);
    assert_int_equal(config.log_level, LOG_LEVEL_DEBUG);
    assert_int_equal(config.socket_mode, 0666);
    assert_int_equal(config.group_id, 0);
    assert_int_equal(config.viewers.uid_count, 2);
    assert_int_equal(config.viewers.uids[0], 1000);
    assert_int_equal(config.viewers.uids[1], 0);
    assert_int_equal(config.viewers.gid_count, 1);
    assert_int_equal(config.viewers.gids[0], 1001);
}

static void refused(const char *text, const char *expected)
{
    error_clear(&err);
    put("platterd.conf", text);
    assert_int_equal(read_main(), -EINVAL);
    if (!strstr(err.message, expected))
        fail_msg("'%s' does not say '%s'", err.message, expected);
}

static void test_refusals(void **state)
{
    (void)state;
    refused("[platterd]\nstate_dir = /a\nstate_dri = /b\n", "platterd.conf:3: unknown key 'state_dri'");
    refused("[platter]\nx = 1\n", "platterd.conf:2: unknown section [platter]");
    refused("workers = 1\n", ":1: unknown section");
    refused("[platterd]\nworkers = 0\n", ":2: workers");
    refused("[platterd]\nworkers = 65\n", "65");
    refused("[platterd]\nworkers = -1\n", "-1");
    refused("[platterd]\nmerge_rate = fast\n", ":2: merge_rate");
    refused("[platterd]\nstate_dir = relative\n", "not an absolute path");
    refused("[platterd]\nlog_level = loud\n", "loud");
    refused("[access]\nsocket_mode = 0999\n", "octal");
    refused("[access]\nsocket_mode = 0444\n", "lock the owner out");
    refused("[platterd]\nnonsense\n", "platterd.conf:2: neither");
    refused("[platterd]\nstate_dir = /a\n  /b\n", ":3: the line is indented");
    char line[1024] = "[platterd]\nstate_dir = /";
    memset(line + strlen(line), 'x', 600);
    refused(line, ":2: ");
    put("platterd.conf", "[access]\nviewers = no-such-user-here\n");
    assert_true(read_main() < 0);
    assert_non_null(strstr(err.message, "no-such-user-here"));
}

static void test_bad_override_is_named(void **state)
{
    (void)state;
    put("platterd.conf", "[platterd]\nworkers = 2\n");
    put("conf.d/10-a.conf", "\n[platterd]\nworker = 2\n");
    assert_int_equal(read_main(), -EINVAL);
    assert_non_null(strstr(err.message, "conf.d/10-a.conf:3: unknown key 'worker'"));
}

static void test_complete(void **state)
{
    (void)state;
    char path[200] = "/";
    memset(path + 1, 'x', 150);
    assert_int_equal(config_set(&config, "platterd", "socket", path, &err), 0);
    assert_int_equal(config_complete(&config, &err), -ENAMETOOLONG);
    assert_int_equal(config_set(&config, "platterd", "socket", "/s", &err), 0);
    assert_int_equal(config_set(&config, "access", "group", "no-such-group-here", &err), 0);
    assert_true(config_complete(&config, &err) < 0);
    assert_int_equal(config_set(&config, "access", "group", "", &err), 0);
    assert_int_equal(config_complete(&config, &err), 0);
    assert_true(config.group_id == (gid_t)-1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_defaults, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_values_and_overrides, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_refusals, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_bad_override_is_named, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_complete, set_up, tear_down),
    };
    if (!mkdtemp(directory))
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    (void)rmdir(directory);
    return failed;
}
