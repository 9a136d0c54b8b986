// SPDX-License-Identifier: Apache-2.0
/*
 * crash-states raw|qcow2|VARIANT|SHAPE [--plant NAME] (options.h): loads on images of one format, each recorded, then the power cut at every
 * operation, at the end of every flush and between; what was not flushed survives, is lost, in part, torn, reordered.
 *
 *   PLATTER_CRASH_STATES=N  states in all (rounds are whole, so a few more)
 *   PLATTER_CRASH_SEED=N    seed of the first round; a finding prints the seed that repeats it with PLATTER_CRASH_STATES=1
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

#define STEPS 260u
#define QEMU_EVERY 1000u
#define REPAIR_EVERY 16u
#define WRITE_EVERY 64u

struct run {
    const char *format;          /* or the variant */
    const struct variant *shape; /* NULL: a variant of the format */
    uint64_t seed;
};

struct round {
    struct load load;
    struct judge judge;
    struct cuts cuts;
    struct dice dice;
    uint64_t states;
};

static const struct variant *choose_variant(const char *format, uint64_t seed)
{
    const struct variant *fitting[16];
    unsigned count = 0;
    for (unsigned i = 0; i < variants_count; i++)
        if (strcmp(variants[i].format, format) == 0 || strcmp(variants[i].name, format) == 0)
            fitting[count++] = &variants[i];
    return count ? fitting[seed % count] : NULL;
}

static int cut(struct round *r, enum survive survive)
{
    uint64_t dice = r->dice.state, moment = r->cuts.moment;
    const struct state *state = &r->cuts.state;
    cuts_make(&r->cuts, survive, &r->dice);
    r->states++;
    int result = judge_state(&r->judge, state, &r->cuts.oracle, moment);
    if (result == 0 && r->states % QEMU_EVERY == 0)
        result = judge_by_qemu(&r->judge, state);
    if (result == 0 && r->states % REPAIR_EVERY == 1)
        result = judge_repair(&r->judge, state);
    if (result == 0 && r->states % WRITE_EVERY == 0)
        result = judge_writing(&r->judge, state, dice);
    if (result < 0)
        finding("%s: cut at moment %llu of %llu, survive: %s: %s\n  repeat: PLATTER_CRASH_SEED=%llu "
                "PLATTER_CRASH_STATES=1 crash-states %s\n",
                r->load.variant->name, (unsigned long long)moment, (unsigned long long)r->load.clock,
                survive_names[survive], r->judge.message, (unsigned long long)r->load.options.seed,
                r->load.variant->name);
    cuts_restore(&r->cuts);
    return result;
}

/* At a moment: all that was issued so far; nothing but what was flushed; and something between. */
static int cut_at(struct round *r, uint64_t moment, bool issued)
{
    static const enum survive between[] = {SURVIVE_SOME, SURVIVE_TORN, SURVIVE_REORDERED};
    cuts_to(&r->cuts, moment);
    if (issued && cut(r, SURVIVE_ALL) < 0)
        return -1;
    if (!issued && cut(r, SURVIVE_NONE) < 0)
        return -1;
    if (cuts_open(&r->cuts) == 0)
        return 0;
    return cut(r, between[dice_roll(&r->dice, 3)]);
}

static int by_moment(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

/* Moments in order, twice the number with the lowest bit set where an operation was issued. */
static size_t list_moments(const struct load *load, uint64_t **ret_moments)
{
    const struct trace *traces[] = {&load->trace, &load->upper_trace};
    size_t most = load->trace.count + load->upper_trace.count + load->started + LOAD_RESIZES + 2, count = 0;
    uint64_t *moments = need(calloc(most, sizeof(*moments)));
    for (unsigned t = 0; t < 2; t++) {
        for (size_t i = 0; i < traces[t]->count; i++) {
            const struct trace_entry *entry = &traces[t]->entries[i];
            if (entry->kind != SEAM_FLUSH)
                moments[count++] = entry->issued << 1 | 1;
            else if (entry->done)
                moments[count++] = entry->done << 1;
        }
    }
    if (load->snapshot.started) {
        moments[count++] = load->snapshot.started << 1;
        moments[count++] = load->snapshot.ended << 1;
    }
    for (unsigned i = 0; i < load->started; i++)
        if (load->steps[i].ended && (load->steps[i].op == IMAGE_FLUSH || load->steps[i].fua))
            moments[count++] = load->steps[i].ended << 1;
    for (unsigned i = 0; i < load->resize_count; i++)
        moments[count++] = load->resizes[i].ended << 1;
    qsort(moments, count, sizeof(*moments), by_moment);
    *ret_moments = moments;
    return count;
}

static int sweep_load(struct round *r)
{
    uint64_t *moments;
    size_t count = list_moments(&r->load, &moments);
    int result = 0;
    cuts_begin(&r->cuts, &r->load);
    for (size_t i = 0; i < count && result == 0; i++)
        result = cut_at(r, moments[i] >> 1, moments[i] & 1);
    cuts_end(&r->cuts);
    free(moments);
    return result;
}

static int64_t round_run(void *context, uint64_t number, const char *directory)
{
    const struct run *run = context;
    uint64_t seed = run->seed + number;
    struct round r = {.dice = {.state = seed}};
    struct load_options options = {.seed = seed, .steps = STEPS, .resize_odds = 300, .snapshot_odds = 300};
    load_create(&r.load, run->shape ? run->shape : choose_variant(run->format, seed), &options);
    int result = load_run(&r.load, NULL) < 0 || r.load.wrong ? -1 : 0;
    judge_create(&r.judge, &r.load, directory);
    if (result == 0 && (r.load.closed < 0 || judge_clean(&r.judge) < 0))
        result = -1;
    if (result < 0)
        finding("%s: the load itself (closed: %d): %s\n  repeat: PLATTER_CRASH_SEED=%llu crash-states %s\n",
                r.load.variant->name, r.load.closed, r.judge.message[0] ? r.judge.message : "see above",
                (unsigned long long)seed, r.load.variant->name);
    if (result == 0)
        result = sweep_load(&r);
    if (result < 0)
        load_tell(&r.load);
    judge_destroy(&r.judge);
    load_destroy(&r.load);
    return result < 0 ? -1 : (int64_t)r.states;
}

int main(int argc, char **argv)
{
    struct options options;
    if (!options_parse(argc, argv, &options))
        return 2;
    struct run run = {.format = options.name, .shape = options.shape, .seed = setting("PLATTER_CRASH_SEED", 1)};
    if (!run.shape && (!run.format || !choose_variant(run.format, 0))) {
        (void)fprintf(stderr, "usage: %s raw|qcow2|VARIANT|SHAPE [--plant NAME]\n", argv[0]);
        return 2;
    }
    struct workers workers = {.round = round_run, .context = &run, .what = "states", .json = options.json};
    workers.target = setting("PLATTER_CRASH_STATES", CRASH_STATES_DEFAULT);
    return workers_run(&workers);
}
