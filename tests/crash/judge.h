/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One state of a file judged: opened with the engine, read whole, checked and read by the checker of our own, both compared
 * with each other and with the oracle; some also by qemu-img, some by the engine's check and repair, and some opened for
 * writing, written and checked again.
 */
#ifndef PLATTER_TESTS_CRASH_JUDGE_H
#define PLATTER_TESTS_CRASH_JUDGE_H

#include "checker.h"
#include "load.h"
#include "oracle.h"

struct judge {
    struct load *load;
    struct io_loop *loop;
    struct checker checker, upper_checker; /* of the file, of the layer above it */
    struct memory scratch;                 /* for states that are written to */
    uint8_t *content;
    uint64_t size;
    char message[400];
    char path[200]; /* of a directory for qemu-img's files; "" = none */
};

/* `directory` for qemu-img's files; NULL = do without, as with PLATTER_CRASH_QEMU=0 in the
 * environment. */
void judge_create(struct judge *judge, struct load *load, const char *directory);
void judge_destroy(struct judge *judge);

/* A state: the image's file and the layer above it, NULL before a snapshot. */
struct state {
    struct memory *file, *upper;
};

/* 0, or -1 with `message` filled. Leaks are allowed. */
int judge_state(struct judge *judge, const struct state *state, struct oracle *oracle, uint64_t moment);
/* The rest is about the state that judge_state has just judged. */
/* qemu-img's opinion. */
int judge_by_qemu(struct judge *judge, const struct state *state);
/* A copy is opened for writing, loaded, closed, and judged. */
int judge_writing(struct judge *judge, const struct state *state, uint64_t seed);
/* The engine's own check of a copy agrees with the checker, and repairs it: no leak stays, and the content does. */
int judge_repair(struct judge *judge, const struct state *state);
/* After the load closed without an error: everything is there; and judge_clean: nothing leaked. */
int judge_closed(struct judge *judge);
int judge_clean(struct judge *judge);
int judge_final_by_qemu(struct judge *judge);

#endif
