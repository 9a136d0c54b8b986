/* SPDX-License-Identifier: Apache-2.0 */
/* Arithmetic on numbers from disk, network or user. The checked forms return true when the result fits. */
#ifndef PLATTER_COMMON_CHECKED_H
#define PLATTER_COMMON_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

#define KIB (UINT64_C(1) << 10)
#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define TIB (UINT64_C(1) << 40)

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

static inline bool checked_add(uint64_t a, uint64_t b, uint64_t *ret)
{
    return !__builtin_add_overflow(a, b, ret);
}

static inline bool checked_mul(uint64_t a, uint64_t b, uint64_t *ret)
{
    return !__builtin_mul_overflow(a, b, ret);
}

/* True when [offset, offset + length) lies within [0, limit). */
static inline bool range_within(uint64_t offset, uint64_t length, uint64_t limit)
{
    return offset <= limit && length <= limit - offset;
}

/* True when the two half-open ranges share a byte. The sums must not overflow: validate first. */
static inline bool ranges_overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
    return a < b + b_len && b < a + a_len;
}

static inline bool is_power_of_two(uint64_t v)
{
    return v && !(v & (v - 1));
}

/* `to` must be a power of two. align_up is for values already known to be far from 2^64. */
static inline bool is_aligned(uint64_t v, uint64_t to)
{
    return (v & (to - 1)) == 0;
}

static inline uint64_t align_down(uint64_t v, uint64_t to)
{
    return v & ~(to - 1);
}

static inline uint64_t align_up(uint64_t v, uint64_t to)
{
    return (v + to - 1) & ~(to - 1);
}

static inline uint64_t div_round_up(uint64_t v, uint64_t by)
{
    return v / by + (v % by != 0);
}

#endif
