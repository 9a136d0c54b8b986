/* SPDX-License-Identifier: Apache-2.0 */
/* The harness's own needs: what it cannot do without ends the program. */
#ifndef PLATTER_TESTS_CRASH_FATAL_H
#define PLATTER_TESTS_CRASH_FATAL_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define FATAL(...)                                                                                                     \
    do {                                                                                                               \
        (void)fprintf(stderr, __VA_ARGS__);                                                                            \
        (void)fprintf(stderr, " (%s:%d, errno %d)\n", __FILE__, __LINE__, errno);                                      \
        abort();                                                                                                       \
    } while (0)

#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            FATAL("the harness needs: %s", #condition);                                                                \
    } while (0)

static inline void *need(void *memory)
{
    MUST(memory != NULL);
    return memory;
}

#endif
