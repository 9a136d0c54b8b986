/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Planted faults: one at a time, chosen when the program starts, each a way in which the engine or what is below it could
 * break a promise. A harness that finds nothing while one is planted proves nothing.
 */
#ifndef PLATTER_TESTS_CRASH_PLANT_H
#define PLATTER_TESTS_CRASH_PLANT_H

#include <stdbool.h>

enum plant {
    PLANT_NONE,
    /* Below the engine, in memory.c: */
    PLANT_DROP_FLUSH,   /* some flushes do nothing */
    PLANT_EARLY_DONE,   /* some writes are reported done before they are issued */
    PLANT_HIDDEN_ERROR, /* an operation that failed says that it did not */
    /* In the engine, by the linker, in plant.c: */
    PLANT_NO_BARRIER,   /* tables may be written before the data that they point to */
    PLANT_NO_COUNT,     /* clusters are handed out before their reference counts are durable */
    PLANT_EARLY_REUSE,  /* freed clusters may be reused before their unlinking is durable */
    PLANT_NO_GRACE,     /* ... before those who still read them are done */
    PLANT_LATE_PUNCH,   /* the hole is punched after the cluster may be used again */
    PLANT_FORGET_ERROR, /* a failed flush does not fence the image */
};

extern enum plant plant;

/* False when there is none of that name. */
bool plant_choose(const char *name);

#endif
