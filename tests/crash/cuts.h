/* SPDX-License-Identifier: Apache-2.0 */
/* The states of a whole load: all of its files cut at the same moment. */
#ifndef PLATTER_TESTS_CRASH_CUTS_H
#define PLATTER_TESTS_CRASH_CUTS_H

#include "judge.h"

struct cuts {
    struct load *load;
    struct sweep file, upper;
    struct memory file_memory, upper_memory;
    struct oracle oracle;
    struct state state;
    uint64_t moment;
};

void cuts_begin(struct cuts *cuts, struct load *load);
void cuts_end(struct cuts *cuts);
/* Moments only grow. */
void cuts_to(struct cuts *cuts, uint64_t moment);
/* Changes that may or may not survive now. */
size_t cuts_open(const struct cuts *cuts);
/* cuts->state is what is left of the files; cuts_restore before the next one. */
void cuts_make(struct cuts *cuts, enum survive survive, struct dice *dice);
void cuts_restore(struct cuts *cuts);

#endif
