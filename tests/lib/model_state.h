/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the model: the bytes, what is known of them, and the ranges in flight. */
#ifndef PLATTER_TESTS_LIB_MODEL_STATE_H
#define PLATTER_TESTS_LIB_MODEL_STATE_H

#include <pthread.h>

#include "model.h"

enum {
    MODEL_MAYBE_ZERO = 1 << 0, /* discarded: zero or as before */
    MODEL_OTHER = 1 << 1,      /* a write failed: value or other */
    MODEL_ANY = 1 << 2,        /* too many failed to tell */
};

struct model {
    struct model_options options;
    uint64_t seed;
    uint64_t runs;
    uint64_t hot; /* offset of this run's hot spot */

    pthread_mutex_t lock; /* all below */
    uint8_t *value;
    uint8_t *other;
    uint8_t *flags;
    struct model_io *in_flight;
    bool failed;
};

/* Reserve the range of `io` unless something in flight is in its way. */
bool model_reserve(struct model *model, struct model_io *io);
/* The end of an operation: learn from it, check what it read, give its range back. */
void model_settle(struct model *model, struct model_io *io, int result);
bool model_has_failed(struct model *model);
/* Print and remember a failure. Not under lock. */
void model_report(struct model *model, const struct model_io *io, const char *what, int result);

#endif
