// SPDX-License-Identifier: Apache-2.0
#include "common/size.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <strings.h>

#include "common/checked.h"

#define FRACTION_DIGITS_MAX 9

static const char unit_letters[] = "KMGTPE";

/* The multiplier that `suffix` stands for, 0 if it is no unit. */
static uint64_t unit_multiplier(const char *suffix)
{
    if (!*suffix || strcasecmp(suffix, "B") == 0)
        return 1;
    for (unsigned i = 0; unit_letters[i]; i++) {
        if (toupper((unsigned char)suffix[0]) != unit_letters[i])
            continue;
        if (!suffix[1] || strcasecmp(suffix + 1, "iB") == 0)
            return UINT64_C(1) << (10 * (i + 1));
        if (strcasecmp(suffix + 1, "B") != 0)
            return 0;
        uint64_t multiplier = 1;
        for (unsigned n = 0; n <= i; n++)
            multiplier *= 1000;
        return multiplier;
    }
    return 0;
}

/* Reads digits into *value, at most `max` of them (0 = as many as fit); returns their number or a negative errno. */
static int read_digits(const char **text, unsigned max, uint64_t *value)
{
    unsigned count = 0;
    while (isdigit((unsigned char)**text)) {
        if (max && count == max)
            return -EINVAL;
        if (!checked_mul(*value, 10, value) || !checked_add(*value, (uint64_t)(**text - '0'), value))
            return -ERANGE;
        (*text)++;
        count++;
    }
    return (int)count;
}

int size_parse(const char *text, uint64_t *ret_bytes)
{
    uint64_t whole = 0, fraction = 0, scale = 1;
    int digits = read_digits(&text, 0, &whole);
    if (digits <= 0)
        return digits ? digits : -EINVAL;
    if (*text == '.') {
        text++;
        digits = read_digits(&text, FRACTION_DIGITS_MAX, &fraction);
        if (digits <= 0)
            return digits ? digits : -EINVAL;
        while (digits--)
            scale *= 10;
    }
    uint64_t multiplier = unit_multiplier(text);
    if (!multiplier)
        return -EINVAL;

    unsigned __int128 part = (unsigned __int128)fraction * multiplier;
    if (part % scale)
        return -EINVAL;
    uint64_t bytes;
    if (!checked_mul(whole, multiplier, &bytes) || !checked_add(bytes, (uint64_t)(part / scale), &bytes) ||
        bytes > INT64_MAX)
        return -ERANGE;
    *ret_bytes = bytes;
    return 0;
}

const char *size_format(uint64_t bytes, char buf[SIZE_TEXT_MAX])
{
    if (bytes < KIB) {
        (void)snprintf(buf, SIZE_TEXT_MAX, "%u B", (unsigned)bytes);
        return buf;
    }
    unsigned unit = 0;
    while (unit + 1 < sizeof(unit_letters) - 1 && bytes >> (10 * (unit + 2)))
        unit++;
    unsigned shift = 10 * (unit + 1);
    /* In tenths, rounded to nearest: the remainder is below 2^60, so it cannot overflow 128 bits. */
    uint64_t tenths = (uint64_t)(((unsigned __int128)bytes * 10 + (UINT64_C(1) << (shift - 1))) >> shift);
    if (tenths >= 10240 && unit + 1 < sizeof(unit_letters) - 1) {
        unit++;
        tenths = 10;
    }
    bool whole = tenths % 10 == 0 || tenths >= 10000;
    if (whole)
        (void)snprintf(buf, SIZE_TEXT_MAX, "%llu %ciB", (unsigned long long)(tenths / 10), unit_letters[unit]);
    else
        (void)snprintf(buf, SIZE_TEXT_MAX, "%llu.%llu %ciB", (unsigned long long)(tenths / 10),
                       (unsigned long long)(tenths % 10), unit_letters[unit]);
    return buf;
}
