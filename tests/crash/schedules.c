// SPDX-License-Identifier: Apache-2.0
/*
 * crash-schedules [VARIANT|SHAPE] [--plant NAME] (options.h): one load after another, each under a schedule of its own in which requests,
 * the engine's threads and operations on the file interleave as a seed says. Reads must answer what was written, also
 * beside changes in flight; after closing, everything is there and nothing leaked. Every tenth runs twice and must be the
 * same, operation for operation and byte for byte.
 *
 *   PLATTER_CRASH_SCHEDULES=N  how many
 *   PLATTER_CRASH_SEED=N       the first one's seed
 *   PLATTER_CRASH_JOBS=N       processes; otherwise one for each processor
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fatal.h"
#include "judge.h"
#include "options.h"
#include "plant.h"
#include "workers.h"

#define STEPS 400u
#define TWICE_EVERY 10u

struct run {
    uint64_t seed;
    const struct variant *variant; /* NULL = all in turn */
    const char *command;
};

/* The same load again: the same file? */
static bool repeats(const struct load *load)
{
    struct load again;
    load_create(&again, load->variant, &load->options);
    (void)load_run(&again, NULL);
    uint64_t length = memory_length(&load->file);
    bool same = again.hash == load->hash && memory_length(&again.file) == length &&
                memcmp(again.file.map, load->file.map, length) == 0;
    load_destroy(&again);
    return same;
}

static int64_t round_run(void *context, uint64_t number, const char *directory)
{
    const struct run *run = context;
    struct load_options options = {
        .seed = run->seed + number, .steps = STEPS, .resize_odds = 300, .snapshot_odds = 300};
    const struct variant *variant = run->variant ? run->variant : &variants[options.seed % variants_count];
    struct load load;
    struct judge judge;
    load_create(&load, variant, &options);
    int result = load_run(&load, NULL) < 0 || load.wrong || load.closed < 0 ? -1 : 0;
    judge_create(&judge, &load, directory);
    if (result == 0)
        result = judge_clean(&judge);
    if (result == 0 && number % TWICE_EVERY == 0)
        result = judge_final_by_qemu(&judge);
    if (result == 0 && number % TWICE_EVERY == 0 && !repeats(&load)) {
        (void)snprintf(judge.message, sizeof(judge.message), "the same seed did something else");
        result = -1;
    }
    if (result < 0)
        finding("%s: schedule %llu: %s\n  repeat: PLATTER_CRASH_SEED=%llu PLATTER_CRASH_SCHEDULES=1 %s %s\n",
                variant->name, (unsigned long long)options.seed, judge.message[0] ? judge.message : "see above",
                (unsigned long long)options.seed, run->command, variant->name);
    if (result < 0)
        load_tell(&load);
    judge_destroy(&judge);
    load_destroy(&load);
    return result < 0 ? -1 : 1;
}

int main(int argc, char **argv)
{
    struct options options;
    if (!options_parse(argc, argv, &options))
        return 2;
    struct run run = {.seed = setting("PLATTER_CRASH_SEED", 1), .command = argv[0], .variant = options.shape};
    for (unsigned v = 0; v < variants_count && options.name; v++)
        if (strcmp(variants[v].name, options.name) == 0)
            run.variant = &variants[v];
    if (options.name && !run.variant) {
        (void)fprintf(stderr, "usage: %s [VARIANT|SHAPE] [--plant NAME]\n", argv[0]);
        return 2;
    }
    struct workers workers = {.round = round_run, .context = &run, .what = "schedules", .json = options.json};
    workers.target = setting("PLATTER_CRASH_SCHEDULES", CRASH_SCHEDULES_DEFAULT);
    return workers_run(&workers);
}
