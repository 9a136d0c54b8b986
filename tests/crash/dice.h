/* SPDX-License-Identifier: Apache-2.0 */
/* Seeded dice: the same on every machine and with every library. */
#ifndef PLATTER_TESTS_CRASH_DICE_H
#define PLATTER_TESTS_CRASH_DICE_H

#include <stdbool.h>
#include <stdint.h>

struct dice {
    uint64_t state;
};

static inline uint64_t dice_mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static inline uint64_t dice_next(struct dice *dice)
{
    dice->state += UINT64_C(0x9e3779b97f4a7c15);
    return dice_mix(dice->state);
}

/* 0 .. below - 1; 0 for below 0. */
static inline uint32_t dice_roll(struct dice *dice, uint32_t below)
{
    return below ? (uint32_t)((dice_next(dice) >> 32) * below >> 32) : 0;
}

#endif
