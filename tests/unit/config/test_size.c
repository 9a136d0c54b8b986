// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "common/checked.h"
#include "common/size.h"

static void parses(const char *text, uint64_t expected)
{
    uint64_t bytes = 0;
    if (size_parse(text, &bytes) != 0)
        fail_msg("'%s' was refused", text);
    assert_int_equal(bytes, expected);
}

static void refuses(const char *text, int errnum)
{
    uint64_t bytes = 42;
    int r = size_parse(text, &bytes);
    if (r != -errnum)
        fail_msg("'%s' gave %d", text, r);
    assert_int_equal(bytes, 42);
}

static void test_parse(void **state)
{
    (void)state;
    parses("0", 0);
    parses("4096", 4096);
    parses("4096B", 4096);
    parses("1k", 1024);
    parses("10G", 10 * GIB);
    parses("10g", 10 * GIB);
    parses("10GiB", 10 * GIB);
    parses("10gib", 10 * GIB);
    parses("10GB", UINT64_C(10000000000));
    parses("1.5G", GIB + GIB / 2);
    parses("0.5KiB", 512);
    parses("1.000000000T", TIB);
    parses("1.5TB", UINT64_C(1500000000000));
    parses("7E", 7 * 1024 * 1024 * TIB);
    parses("9223372036854775807", INT64_MAX);
}

static void test_refuse(void **state)
{
    (void)state;
    static const char *const invalid[] = {"",     " 1",   "1 ",   "-1",    "+1",
                                          "G",    "1X",   "1GG",  "1GiBB", "1.",
                                          ".5G",  "1.5",  "0x10", "1e3",   "1.0000000001G",
                                          "1,5G", "0.3K", "NaN",  "1 GB",  "1G\n",
                                          "１"};
    for (size_t i = 0; i < ARRAY_SIZE(invalid); i++)
        refuses(invalid[i], EINVAL);
    refuses("9223372036854775808", ERANGE);
    refuses("18446744073709551616", ERANGE);
    refuses("8E", ERANGE);
    refuses("99999999999999999999999", ERANGE);
}

static void formats(uint64_t bytes, const char *expected)
{
    char buf[SIZE_TEXT_MAX];
    assert_string_equal(size_format(bytes, buf), expected);
}

static void test_format(void **state)
{
    (void)state;
    formats(0, "0 B");
    formats(1023, "1023 B");
    formats(1024, "1 KiB");
    formats(1536, "1.5 KiB");
    formats(10 * GIB, "10 GiB");
    formats(GIB + GIB / 2, "1.5 GiB");
    formats(MIB - 1, "1 MiB");
    formats(1023 * MIB, "1023 MiB");
    formats(UINT64_MAX, "16 EiB");
    formats(INT64_MAX, "8 EiB");
}

/* What is printed in whole units reads back as the same. */
static void test_round_trip(void **state)
{
    (void)state;
    for (unsigned shift = 0; shift < 63; shift++) {
        char buf[SIZE_TEXT_MAX], compact[SIZE_TEXT_MAX];
        size_t n = 0;
        (void)size_format(UINT64_C(1) << shift, buf);
        for (const char *at = buf; *at; at++) {
            if (*at != ' ')
                compact[n++] = *at;
        }
        compact[n] = '\0';
        parses(compact, UINT64_C(1) << shift);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse),
        cmocka_unit_test(test_refuse),
        cmocka_unit_test(test_format),
        cmocka_unit_test(test_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
