// SPDX-License-Identifier: Apache-2.0
/* Paths to routes: parameters, escapes, methods; and the table itself. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/checked.h"
#include "provisioner/api/route.h"

static char *parameters[REQUEST_PARAMETERS_MAX];
static struct error err;

static void forget(void)
{
    for (int i = 0; i < REQUEST_PARAMETERS_MAX; i++) {
        free(parameters[i]);
        parameters[i] = NULL;
    }
}

static void finds(const char *method, const char *path, const char *pattern, const char *parameter)
{
    const struct route *route = NULL;
    if (route_find(method, path, &route, parameters, &err) < 0)
        fail_msg("%s %s: %s", method, path, err.message);
    assert_string_equal(route->pattern, pattern);
    if (parameter)
        assert_string_equal(parameters[0], parameter);
    else
        assert_null(parameters[0]);
    forget();
}

static void refuses(const char *method, const char *path, int errnum)
{
    const struct route *route = NULL;
    int r = route_find(method, path, &route, parameters, &err);
    if (r != -errnum)
        fail_msg("%s %s gave %d", method, path, r);
    forget();
}

static void test_find(void **state)
{
    (void)state;
    finds("GET", "/v1", "/v1", NULL);
    finds("GET", "/v1/volumes", "/v1/volumes", NULL);
    finds("GET", "/v1/volumes/db", "/v1/volumes/{volume}", "db");
    finds("POST", "/v1/volumes/import", "/v1/volumes/import", NULL);
    finds("GET", "/v1/volumes/import", "/v1/volumes/{volume}", "import");
    finds("POST", "/v1/volumes/db/resize", "/v1/volumes/{volume}/resize", "db");
    finds("POST", "/v1/volumes/db/check", "/v1/volumes/{volume}/check", "db");
    finds("DELETE", "/v1/attachments/%2Fsrv%2Fa%20b", "/v1/attachments/{attachment}", "/srv/a b");
    finds("GET", "/v1/volumes/%C3%A9", "/v1/volumes/{volume}", "\xc3\xa9");
}

static void test_refuse(void **state)
{
    (void)state;
    static const char *const unknown[] = {"",
                                          "/",
                                          "/v2",
                                          "/v1/",
                                          "/v1/volume",
                                          "/v1/volumes/",
                                          "/v1/volumes/a/b",
                                          "//v1",
                                          "/v1/volumes//resize",
                                          "/v1/volumes/a/resize/"};
    static const char *const broken[] = {"%", "%2", "%zz", "%2g", "a%", "%00", "%0a", "%7f", "%ff", "%C3"};
    for (size_t i = 0; i < ARRAY_SIZE(unknown); i++)
        refuses("GET", unknown[i], ENOENT);
    for (size_t i = 0; i < ARRAY_SIZE(broken); i++) {
        char path[64];
        (void)snprintf(path, sizeof(path), "/v1/volumes/%s", broken[i]);
        refuses("GET", path, EINVAL);
    }
    refuses("PUT", "/v1/volumes", EOPNOTSUPP);
    refuses("GET", "/v1/volumes/a/resize", EOPNOTSUPP);
    refuses("get", "/v1", EOPNOTSUPP);
}

/* Every change needs at least an operator, reading a viewer; a body belongs to POST only. */
static void test_table(void **state)
{
    (void)state;
    for (const struct route *route = routes; route->method; route++) {
        bool reads = strcmp(route->method, "GET") == 0;
        assert_non_null(route->handle);
        assert_true(reads == (route->role == CALLER_VIEWER));
        assert_true(!route->has_body || strcmp(route->method, "POST") == 0);
        if (strncmp(route->pattern, "/v1/pools", 9) == 0 && !reads)
            assert_int_equal(route->role, CALLER_ADMIN);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_find),
        cmocka_unit_test(test_refuse),
        cmocka_unit_test(test_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
