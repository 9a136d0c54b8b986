/* SPDX-License-Identifier: Apache-2.0 */
/* Rounds of a driver on all processors: a process for each, so that a crash of the engine is a finding like any other. */
#ifndef PLATTER_TESTS_CRASH_WORKERS_H
#define PLATTER_TESTS_CRASH_WORKERS_H

#include <stdbool.h>
#include <stdint.h>

struct workers {
    /* One round in a worker process: returns what it did (states, runs), or -1 after printing what was wrong. `directory`
     * is the worker's own. */
    int64_t (*round)(void *context, uint64_t number, const char *directory);
    void *context;
    uint64_t target;  /* rounds go on until so much was done */
    uint64_t rounds;  /* ... or until there have been so many */
    const char *what; /* "states" */
    bool json;        /* progress and the result as JSON lines */
};

/* Tell of something wrong, in a round: to standard error, and with `json` as a part of the result. */
__attribute__((format(printf, 1, 2))) void finding(const char *format, ...);

/* Prints a summary; with `json` lines {"progress": {"done", "total"}} (total 0: not known) and last {"what", "done",
 * "seconds", "processes", "lost", "foreign", "torn", "other", "message"}, which count what was found: no process goes on
 * after its first. Exit status: 0, or 1 when something was wrong. With a plant it is the other way round,
 * unless `json`. */
int workers_run(const struct workers *workers);

/* From the environment. */
uint64_t setting(const char *name, uint64_t otherwise);

#endif
