/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an image may hold. Every granule has a floor: the last step that is certain to be there. It may hold what the floor
 * left or what any later step on it put there. Discards leave zeros or what was; they are no floor.
 *
 * Two uses: while a load runs the floor is the last step that succeeded; after a power cut at a moment it is the last one
 * that a flush (or its own FUA) had made durable by then.
 */
#ifndef PLATTER_TESTS_CRASH_ORACLE_H
#define PLATTER_TESTS_CRASH_ORACLE_H

#include "load.h"

struct oracle {
    const struct load *load;
    int32_t *floor;  /* generation */
    int32_t *zeroed; /* the newest step that may have left zeros; -1 = none, 0 = it began so */
    uint64_t size_least, size_most;
    uint64_t promised;                       /* steps ended before this moment are durable */
    uint32_t *by_end;                        /* indexes of steps, by `ended` */
    unsigned ended, starts, looked, covered; /* how far each of the three walks came */
    char message[200];
};

void oracle_create(struct oracle *oracle, const struct load *load);
void oracle_destroy(struct oracle *oracle);

/* While the load runs. */
void oracle_started(struct oracle *oracle, const struct step *step);
void oracle_succeeded(struct oracle *oracle, const struct step *step);

/* After the load: all that is promised at `moment`. Moments only grow. */
void oracle_to(struct oracle *oracle, uint64_t moment);

/* 0, or -1 with `message` filled. `content` are granules from `first` on, read at `moment`, `floor` their floors when the
 * reading began (NULL: now). */
int oracle_judge(struct oracle *oracle, const uint8_t *content, uint32_t first, uint32_t count, uint64_t moment,
                 const int32_t *floor);

#endif
