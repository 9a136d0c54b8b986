/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sizes as people write them. Parsing accepts plain bytes ("4096"), binary units ("10G", "10GiB", "10g") and decimal
 * units ("10GB" = 10^10 bytes), each with a fraction if the result is a whole number of bytes ("1.5G").
 * Formatting uses binary units for people; machines get integers. No locale, no state, any thread.
 */
#ifndef PLATTER_COMMON_SIZE_H
#define PLATTER_COMMON_SIZE_H

#include <stdint.h>

#define SIZE_TEXT_MAX 32

/* -EINVAL for anything that is no size (signs, spaces, empty, unknown unit, a broken byte), -ERANGE beyond 2^63-1:
 * every size must fit JSON's and off_t's signed 64 bits. */
int size_parse(const char *text, uint64_t *ret_bytes);

/* "512 B", "1.5 GiB", "10 GiB": rounded to a tenth, at most four significant digits. Returns buf. */
const char *size_format(uint64_t bytes, char buf[SIZE_TEXT_MAX]);

#endif
