// SPDX-License-Identifier: Apache-2.0
/*
 * crash-faults [VARIANT|SHAPE] [--plant NAME] (options.h): a fixed load on each kind of image, in which the N-th operation fails, for every N,
 * once and from then on: EIO, ENOSPC, a short transfer, an error of a flush, no memory. Whatever happens, requests end,
 * reads answer what was written, the power may be cut at any moment without losing what was flushed; and where closing the
 * image succeeded, everything is there.
 *
 *   PLATTER_CRASH_STRIDE=N  only every N-th
 *   PLATTER_CRASH_SEED=N    seed of the load
 *   PLATTER_CRASH_JOBS=N    processes; otherwise one for each processor
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuts.h"
#include "fatal.h"
#include "options.h"
#include "plant.h"
#include "workers.h"

#define STEPS 50u
#define CUTS 8u

struct run {
    uint64_t seed, stride;
    const char *variant;         /* NULL = all */
    const struct variant *shape; /* instead of all variants, unless NULL */
    const char *command;
};

struct attempt {
    const struct run *run;
    const struct variant *variant;
    struct fault fault;
};

static int wrong(const struct attempt *a, const char *when, const char *what)
{
    finding("%s: operation %llu, %s, %s: %s: %s\n  repeat: PLATTER_CRASH_SEED=%llu %s %s\n", a->variant->name,
            (unsigned long long)a->fault.at, fault_names[a->fault.kind], a->fault.sticky ? "from then on" : "once",
            when, what, (unsigned long long)a->run->seed, a->run->command, a->variant->name);
    return -1;
}

/* Power cuts at some moments of the run and at its end. */
static int judge_cuts(const struct attempt *a, struct load *load, struct judge *judge)
{
    struct cuts cuts;
    struct dice dice = {.state = a->fault.at};
    int result = 0;
    cuts_begin(&cuts, load);
    for (unsigned i = 1; i <= CUTS && result == 0; i++) {
        cuts_to(&cuts, load->clock * i / CUTS);
        for (unsigned survive = 0; survive < SURVIVE_KINDS && result == 0; survive++) {
            if (i < CUTS && survive != i % SURVIVE_KINDS)
                continue;
            cuts_make(&cuts, (enum survive)survive, &dice);
            result = judge_state(judge, &cuts.state, &cuts.oracle, cuts.moment);
            if (result < 0)
                (void)wrong(a, survive_names[survive], judge->message);
            cuts_restore(&cuts);
        }
    }
    cuts_end(&cuts);
    return result;
}

static int judge_run(const struct attempt *a, struct load *load, int ran)
{
    struct judge judge;
    if (load->wrong)
        return wrong(a, "while it ran", "see above");
    judge_create(&judge, load, NULL);
    int result = judge_cuts(a, load, &judge);
    /* Without an error in the end nothing may be missing; but leaks are left where something could not be given back. */
    if (result == 0 && ran == 0 && load->closed == 0 && judge_closed(&judge) < 0)
        result = wrong(a, "after closing", judge.message);
    judge_destroy(&judge);
    return result;
}

/* 1 = the fault happened and all is well; 0 = there is no such operation; -1. */
static int attempt(struct attempt *a)
{
    struct load load;
    struct load_options options = {
        .seed = a->run->seed, .steps = STEPS, .tolerate = true, .resize_odds = 40, .snapshot_odds = 40};
    a->fault.seen = 0;
    a->fault.happened = false;
    a->fault.dice.state = a->fault.at;
    load_create(&load, a->variant, &options);
    int ran = load_run(&load, &a->fault);
    int result = judge_run(a, &load, ran);
    if (result < 0)
        load_tell(&load);
    load_destroy(&load);
    return result < 0 ? -1 : a->fault.happened;
}

/* A round is one variant, one kind of fault, once or from then on. */
static int64_t round_run(void *context, uint64_t number, const char *directory)
{
    const struct run *run = context;
    struct attempt a = {.run = run,
                        .variant = run->shape ? run->shape : &variants[number / (UINT64_C(2) * FAULT_KINDS)]};
    (void)directory;
    a.fault.kind = (enum fault_kind)(number / 2 % FAULT_KINDS);
    a.fault.sticky = number % 2;
    if (run->variant && strcmp(run->variant, a.variant->name) != 0)
        return 0;
    int64_t count = 0;
    /* Larger strides begin elsewhere for each kind, so that together they hit more. */
    for (a.fault.at = 1 + number % run->stride;; a.fault.at += run->stride, count++) {
        int result = attempt(&a);
        if (result < 0)
            return -1;
        if (result == 0)
            return count;
    }
}

int main(int argc, char **argv)
{
    struct options options;
    if (!options_parse(argc, argv, &options))
        return 2;
    struct run run = {.seed = setting("PLATTER_CRASH_SEED", 1), .command = argv[0], .variant = options.name};
    run.shape = options.shape;
    run.stride = setting("PLATTER_CRASH_STRIDE", CRASH_STRIDE_DEFAULT);
    struct workers workers = {.round = round_run, .context = &run, .target = UINT64_MAX, .what = "faults"};
    workers.json = options.json;
    workers.rounds = (run.shape ? 1 : (uint64_t)variants_count) * FAULT_KINDS * 2;
    return workers_run(&workers);
}
