// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/checked.h"
#include "provisioner/api/answer.h"
#include "provisioner/api/body.h"

struct target {
    const char *name, *format;
    uint64_t size;
    uint32_t queues;
    double ratio;
    bool flag;
    json_t *list;
};

static const struct member members[] = {
    {"name", MEMBER_TEXT, offsetof(struct target, name), true, NULL, 8},
    {"format", MEMBER_TEXT, offsetof(struct target, format), false, "qcow2|raw", 0},
    {"size", MEMBER_U64, offsetof(struct target, size), false, NULL, 0},
    {"queues", MEMBER_U32, offsetof(struct target, queues), false, NULL, 16},
    {"ratio", MEMBER_REAL, offsetof(struct target, ratio), false, NULL, 0},
    {"flag", MEMBER_BOOL, offsetof(struct target, flag), false, NULL, 0},
    {"list", MEMBER_ARRAY, offsetof(struct target, list), false, NULL, 0},
    {NULL, MEMBER_TEXT, 0, false, NULL, 0},
};

static void test_all(void **state)
{
    (void)state;
    struct target target = {.format = "raw"};
    json_t *body = json_loads("{\"name\":\"db\",\"size\":9223372036854775807,\"queues\":16,\"ratio\":2,\"flag\":true,"
                              "\"list\":[1]}",
                              0, NULL);
    assert_int_equal(body_read(body, members, &target, NULL), 0);
    assert_string_equal(target.name, "db");
    assert_string_equal(target.format, "raw"); /* absent: left alone */
    assert_true(target.size == INT64_MAX);
    assert_int_equal(target.queues, 16);
    assert_true(target.ratio > 1.9 && target.ratio < 2.1);
    assert_true(target.flag);
    assert_int_equal(json_array_size(target.list), 1);
    json_decref(body);
}

static void test_refusals(void **state)
{
    (void)state;
    static const char *const bodies[][2] = {
        {"[]", "object"},
        {"{}", "'name' is missing"},
        {"{\"name\":\"a\",\"nmae\":1}", "unknown member 'nmae'"},
        {"{\"name\":1}", "'name' must be a string"},
        {"{\"name\":null}", "'name'"},
        {"{\"name\":\"\"}", "1 to 8"},
        {"{\"name\":\"123456789\"}", "1 to 8"},
        {"{\"name\":\"a\\nb\"}", "control"},
        {"{\"name\":\"a\\u007f\"}", "control"},
        {"{\"name\":\"a\",\"format\":\"qcow\"}", "qcow2|raw"},
        {"{\"name\":\"a\",\"format\":\"qcow2|raw\"}", "qcow2|raw"},
        {"{\"name\":\"a\",\"size\":-1}", "'size'"},
        {"{\"name\":\"a\",\"size\":1.0}", "'size'"},
        {"{\"name\":\"a\",\"size\":\"1\"}", "'size'"},
        {"{\"name\":\"a\",\"queues\":17}", "0 to 16"},
        {"{\"name\":\"a\",\"ratio\":-0.5}", "'ratio'"},
        {"{\"name\":\"a\",\"flag\":1}", "'flag'"},
        {"{\"name\":\"a\",\"list\":{}}", "'list'"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(bodies); i++) {
        struct target target = {0};
        struct error err = ERROR_INIT;
        json_t *body = json_loads(bodies[i][0], 0, NULL);
        assert_non_null(body);
        assert_int_equal(body_read(body, members, &target, &err), -EINVAL);
        if (!strstr(err.message, bodies[i][1]))
            fail_msg("%s: '%s'", bodies[i][0], err.message);
        json_decref(body);
    }
}

static void test_statuses(void **state)
{
    (void)state;
    static const struct {
        int errnum;
        const char *code;
        int status;
    } rows[] = {
        {EINVAL, "", 400},
        {EINVAL, "shrink-refused", 422},
        {ENOENT, "", 404},
        {EPERM, "forbidden", 403},
        {EEXIST, "", 409},
        {EBUSY, "volume-in-use", 409},
        {ENOSPC, "overprovisioned", 507},
        {EOPNOTSUPP, "", 422},
        {EMSGSIZE, "too-large", 413},
        {EIO, "", 500},
        {ETIMEDOUT, "", 504},
    };
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct error err = ERROR_INIT;
        (void)error_set(&err, rows[i].errnum, "x");
        (void)error_code(&err, rows[i].code);
        assert_int_equal(answer_status(&err), rows[i].status);
    }
}

/* A message with bytes that are no UTF-8 (a file's name) still becomes an answer. */
static void test_error_of_any_bytes(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    (void)error_set(&err, ENOENT, "file '\xff\xfe' is missing");
    json_t *answer = answer_error(&err);
    assert_non_null(answer);
    const json_t *error = json_object_get(answer, "error");
    assert_string_equal(json_string_value(json_object_get(error, "message")), "file '?\?' is missing");
    assert_string_equal(json_string_value(json_object_get(error, "code")), "not-found");
    json_decref(answer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_statuses),
        cmocka_unit_test(test_error_of_any_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
