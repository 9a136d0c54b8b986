/* SPDX-License-Identifier: Apache-2.0 */
/* Random histories of an image over several layers, and what it read as at the end of each. */
#ifndef PLATTER_TESTS_UNIT_CHANGED_HISTORY_H
#define PLATTER_TESTS_UNIT_CHANGED_HISTORY_H

#include "../snapshot/fixture.h"

#define HISTORY_LAYERS 5u
#define HISTORY_SIZE (UINT64_C(3) << 20) /* no image grows larger */
#define HISTORY_GRANULE 4096u

struct history {
    const struct kind *kind;
    unsigned random; /* seed, printed by the test */
    uint64_t granule;
    uint64_t size[HISTORY_LAYERS];
    uint8_t *content[HISTORY_LAYERS];                                /* HISTORY_SIZE bytes, zeros beyond size */
    uint8_t touched[HISTORY_LAYERS][HISTORY_SIZE / HISTORY_GRANULE]; /* by a request, or clusters that it shares */
};

/* Make layer-0 .. layer-4 in the scratch directory. */
struct history *history_create(const struct kind *kind, unsigned seed);
struct history *history_destroy(struct history *history);

unsigned history_random(struct history *history, unsigned below);
/* The seed by PLATTER_TEST_SEED, or a new one; printed. */
unsigned history_seed(void);

#endif
