// SPDX-License-Identifier: Apache-2.0
/* Command lines: what becomes of them, and what is refused with which word. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "provisioner/cli/command.h"

#define WORDS_MAX 32

static struct cli cli;
static struct error err;

static int parse(const char *line)
{
    static char copy[1024];
    static char program[] = "platter";
    char *words[WORDS_MAX] = {program}, *state = NULL;
    int count = 1;
    cli_clear(&cli);
    error_clear(&err);
    (void)snprintf(copy, sizeof(copy), "%s", line);
    for (char *word = strtok_r(copy, " ", &state); word && count < WORDS_MAX - 1; word = strtok_r(NULL, " ", &state))
        words[count++] = word;
    words[count] = NULL;
    return cli_parse(&cli, count, words, &err);
}

static void body_is(const char *line, const char *json)
{
    if (parse(line) < 0)
        fail_msg("'%s' was refused: %s", line, err.message);
    json_t *expected = json_loads(json, 0, NULL);
    char *text = json_dumps(cli.body, JSON_SORT_KEYS);
    assert_non_null(expected);
    if (!json_equal(expected, cli.body))
        fail_msg("'%s' gave %s", line, text);
    json_decref(expected);
    free(text);
}

static void refused(const char *line, const char *word)
{
    if (parse(line) == 0)
        fail_msg("'%s' was taken", line);
    if (!strstr(err.message, word))
        fail_msg("'%s' was refused with '%s'", line, err.message);
}

static void test_bodies(void **state)
{
    (void)state;
    body_is("volume create db --size 10G", "{\"name\":\"db\",\"size\":10737418240}");
    body_is("volume create --size=10GB --pool p db --format raw --preallocate",
            "{\"name\":\"db\",\"size\":10000000000,\"pool\":\"p\",\"format\":\"raw\",\"preallocate\":true}");
    body_is("volume create db --size 1G --cluster-size 2M --version 2 --extended-l2 --compression zstd "
            "--refcount-bits 1 --filesystem xfs",
            "{\"name\":\"db\",\"size\":1073741824,\"cluster_size\":2097152,\"version\":2,\"extended_l2\":true,"
            "\"compression\":\"zstd\",\"refcount_bits\":1,\"filesystem\":\"xfs\"}");
    body_is("pool create p /srv/p --overprovision 1.5", "{\"name\":\"p\",\"path\":\"/srv/p\",\"overprovision\":1.5}");
    body_is("attach db --to vm --export nbd --qmp /run/q.sock --read-only",
            "{\"volume\":\"db\",\"kind\":\"vm\",\"export\":\"nbd\",\"qmp\":\"/run/q.sock\",\"read_only\":true}");
    body_is("mount db /mnt --options noatime,nosuid", "{\"volume\":\"db\",\"mount_options\":\"noatime,nosuid\"}");
    body_is("volume resize db 2T", "{\"size\":2199023255552}");
    body_is("volume resize db --size 2T", "{\"size\":2199023255552}");
    body_is("volume check db --repair", "{\"repair\":true}");
    body_is("volume check db", "{}");
}

static void test_relative_paths(void **state)
{
    (void)state;
    assert_int_equal(chdir("/usr"), 0);
    body_is("volume import db image.qcow2 --source-format qcow2",
            "{\"name\":\"db\",\"source\":\"/usr/image.qcow2\",\"source_format\":\"qcow2\"}");
    assert_int_equal(chdir("/"), 0);
    body_is("volume export db x.img --format raw", "{\"target\":\"/x.img\",\"format\":\"raw\"}");
}

static void test_refusals(void **state)
{
    (void)state;
    refused("frobnicate", "'frobnicate'");
    refused("volume", "needs a verb");
    refused("volume frobnicate", "'volume frobnicate'");
    refused("volume create", "NAME is missing");
    refused("volume create db", "--size is missing");
    refused("volume create -- --strange", "--size is missing");
    refused("volume create db extra --size 1G", "'extra'");
    refused("volume create db --size tiny", "'tiny'");
    refused("volume create db --size -1", "-1");
    refused("volume create db --size 1G --size 2G", "twice");
    refused("volume create db --size 1G --format vmdk", "qcow2|raw");
    refused("volume create db --size 1G --bogus", "--bogus");
    refused("volume create db --size", "--size");
    refused("volume list -o xml", "table|json|name");
    refused("volume list --timeout soon", "soon");
    refused("volume list --timeout -1", "-1");
    refused("pool create p /p --overprovision 0", "positive");
    refused("pool create p /p --overprovision nan", "positive");
    refused("attach db", "--to is missing");
    refused("attach db --to cloud", "device|vm");
    refused("volume list -y", "-y");
}

static void test_common_options(void **state)
{
    (void)state;
    assert_int_equal(unsetenv("PLATTER_SOCKET"), 0);
    assert_int_equal(parse("volume list"), 0);
    assert_string_equal(cli.socket, CLIENT_SOCKET_DEFAULT);
    assert_true(cli.wait);
    assert_int_equal(cli.timeout_ms, -1);
    assert_int_equal(setenv("PLATTER_SOCKET", "/env.sock", 1), 0);
    assert_int_equal(parse("volume list"), 0);
    assert_string_equal(cli.socket, "/env.sock");
    assert_int_equal(parse("--socket /a.sock -o json volume list --no-wait --timeout 1.5"), 0);
    assert_string_equal(cli.socket, "/a.sock");
    assert_int_equal(cli.output, OUTPUT_JSON);
    assert_false(cli.wait);
    assert_int_equal(cli.timeout_ms, 1500);
    assert_int_equal(parse("volume delete db -y"), 0);
    assert_true(cli_flag(&cli, "yes"));
    assert_int_equal(parse("volume create --help"), 0);
    assert_true(cli.help);
    assert_int_equal(parse(""), 0);
    assert_null(cli.command);
}

static void test_repeated(void **state)
{
    (void)state;
    assert_int_equal(parse("volume import db f --source-format qcow2 --parent a --parent b:raw"), 0);
    assert_int_equal(json_array_size(json_object_get(cli.options, "parent")), 2);
}

static void test_exit_codes(void **state)
{
    (void)state;
    static const struct {
        int errnum;
        const char *code;
        enum exit_code expected;
    } rows[] = {
        {ENOENT, "not-found", EXIT_CODE_NOT_FOUND},  {EEXIST, "exists", EXIT_CODE_EXISTS},
        {EBUSY, "volume-in-use", EXIT_CODE_IN_USE},  {ENOSPC, "no-space", EXIT_CODE_NO_SPACE},
        {EINVAL, "invalid", EXIT_CODE_REFUSED},      {EOPNOTSUPP, "shrink-refused", EXIT_CODE_REFUSED},
        {EACCES, "forbidden", EXIT_CODE_PERMISSION}, {ECONNREFUSED, CLIENT_UNREACHABLE, EXIT_CODE_UNREACHABLE},
        {ETIMEDOUT, "", EXIT_CODE_TIMEOUT},          {EIO, "failed", EXIT_CODE_FAILED},
        {EINVAL, CLI_USAGE, EXIT_CODE_USAGE},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        (void)error_set(&err, rows[i].errnum, "x");
        (void)error_code(&err, rows[i].code);
        assert_int_equal(cli_exit_code(&err), rows[i].expected);
    }
}

/* The table of commands itself: every command runs something, and what scripts rely on is there. */
static void test_commands(void **state)
{
    (void)state;
    static const char *const promised[][2] = {
        {"pool", "create"},     {"pool", "list"},       {"pool", "show"},   {"pool", "delete"},   {"volume", "create"},
        {"volume", "import"},   {"volume", "export"},   {"volume", "list"}, {"volume", "show"},   {"volume", "resize"},
        {"volume", "delete"},   {"mount", NULL},        {"unmount", NULL},  {"attach", NULL},     {"detach", NULL},
        {"attachment", "list"}, {"attachment", "show"}, {"job", "list"},    {"job", "show"},      {"job", "wait"},
        {"job", "cancel"},      {"event", "follow"},    {"version", NULL},  {"completion", NULL}, {"help", NULL},
        {"exit-codes", NULL},
    };
    for (size_t i = 0; i < sizeof(promised) / sizeof(promised[0]); i++)
        assert_non_null(command_find(promised[i][0], promised[i][1]));
    for (const struct command *const *group = command_groups; *group; group++) {
        for (const struct command *command = *group; command->noun; command++) {
            assert_non_null(command->run);
            assert_non_null(command->summary);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bodies),         cmocka_unit_test(test_relative_paths), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_common_options), cmocka_unit_test(test_repeated),       cmocka_unit_test(test_exit_codes),
        cmocka_unit_test(test_commands),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    cli_clear(&cli);
    return failed;
}
