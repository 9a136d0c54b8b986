// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "common/error.h"

static void sets_message_and_returns_negative_errno(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    assert_int_equal(error_sys(&err, ENOENT, "open '%s'", "x.qcow2"), -ENOENT);
    assert_string_equal(err.message, "open 'x.qcow2': No such file or directory");
    assert_string_equal(error_code_word(&err), "not-found");
    assert_int_equal(error_set(&err, -EBUSY, "taken"), -EBUSY);
    assert_string_equal(err.message, "taken");
}

static void prefix_keeps_number_and_cause(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    (void)error_set(&err, EIO, "read header");
    assert_int_equal(error_prefix(&err, "volume '%s'", "db"), -EIO);
    assert_string_equal(err.message, "volume 'db': read header");
}

static void long_messages_are_cut_not_overrun(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    char big[2000];
    memset(big, 'x', sizeof(big));
    big[sizeof(big) - 1] = 0;
    (void)error_sys(&err, EIO, "%s", big);
    (void)error_prefix(&err, "%s", big);
    assert_int_equal(strlen(err.message), ERROR_MESSAGE_MAX - 1);
}

static void null_error_carries_the_number(void **state)
{
    (void)state;
    assert_int_equal(error_set(NULL, EIO, "x"), -EIO);
    error_clear(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sets_message_and_returns_negative_errno),
        cmocka_unit_test(prefix_keeps_number_and_cause),
        cmocka_unit_test(long_messages_are_cut_not_overrun),
        cmocka_unit_test(null_error_carries_the_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
