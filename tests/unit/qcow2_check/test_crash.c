// SPDX-License-Identifier: Apache-2.0
/*
 * Power cuts in a repair: it is recorded below the engine, and for a cut after each change and at each flush images are made
 * of what is durable and any part of what is not. None may be worse than before the repair: no error more, each part of the
 * content as before or as after, and the next repair ends where an undisturbed one does.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "damage.h"
#include "record.h"

struct trial {
    const struct shape *shape;
    const struct damage *damage;
    struct recorder recorder;
    struct image_check before;
    uint8_t *read;     /* content after the damage; NULL = it could not be opened */
    uint8_t *expected; /* content after the repair */
    unsigned seed;
};

static bool content_allowed(const struct trial *t, const uint8_t *content)
{
    size_t cluster = t->shape->options.cluster_size;
    for (size_t at = 0; at < shape_read_length(t->shape); at += cluster)
        if (memcmp(content + at, t->expected + at, cluster) != 0 &&
            !(t->read && memcmp(content + at, t->read + at, cluster) == 0))
            return false;
    return true;
}

static const char *judge_image(const struct trial *t, const char *path)
{
    struct image_check found;
    bool failed = false;
    check_file(path, false, 0, NULL, &found);
    if (check_errors(&found) > check_errors(&t->before))
        return "there are more errors";
    uint8_t *content = shape_read(t->shape, path, &failed);
    if (!content && t->read)
        return "it does not open any more";
    bool good = !content || content_allowed(t, content);
    free(content);
    if (!good)
        return "the content is neither old nor new";
    check_file(path, true, 0, NULL, &found);
    check_file(path, false, 0, NULL, &found);
    if (!check_clean(&found))
        return "the next repair does not repair it";
    content = shape_read(t->shape, path, &failed);
    good = content && !failed && memcmp(content, t->expected, shape_read_length(t->shape)) == 0;
    free(content);
    return good ? NULL : "the next repair gives another content";
}

static void judge(struct trial *t, uint64_t moment, enum survive survive)
{
    const char *path = scratch("cut.qcow2");
    unsigned seed = t->seed;
    recorder_cut(&t->recorder, moment, survive, &t->seed, path);
    const char *complaint = judge_image(t, path);
    if (complaint)
        fail_msg("%s, %s: cut at %llu, survive %d, cut seed %u: %s", t->shape->name, t->damage->name,
                 (unsigned long long)moment, survive, seed, complaint);
}

static void try_cuts(const struct shape *shape, const struct damage *damage, unsigned seed)
{
    struct trial t = {.shape = shape, .damage = damage, .seed = seed};
    const char *path = scratch("crash.qcow2");
    struct image_check found;
    bool failed;
    shape_create(shape, path);
    t.expected = shape_read(shape, path, &failed);
    damage->plant(shape, path);
    t.read = shape_read(shape, path, &failed);
    damage_expected(damage, shape, t.expected, t.read);
    check_file(path, false, 0, NULL, &t.before);
    recorder_init(&t.recorder, path);
    check_file(path, true, 4096, &t.recorder.seam, &found);
    assert_true(found.repaired > 0);
    for (size_t i = 0; i < t.recorder.count; i++) {
        /* A long row of equal writes: its ends and some of its middle. */
        if (i > 6 && t.recorder.count - i > 6 && rand_r(&t.seed) % 4 && t.recorder.entries[i].kind != SEAM_FLUSH)
            continue;
        judge(&t, t.recorder.entries[i].done, SURVIVE_ALL);
        judge(&t, t.recorder.entries[i].done, rand_r(&t.seed) % 2 ? SURVIVE_TORN : SURVIVE_SOME);
        if (t.recorder.entries[i].kind == SEAM_FLUSH)
            judge(&t, t.recorder.entries[i].done, SURVIVE_NONE);
    }
    recorder_done(&t.recorder);
    free(t.read);
    free(t.expected);
}

static void no_cut_makes_it_worse(void **state)
{
    const char *given = getenv("PLATTER_SEED");
    unsigned seed = given ? (unsigned)strtoul(given, NULL, 0) : (unsigned)getpid();
    (void)state;
    print_message("seed %u (PLATTER_SEED)\n", seed);
    for (unsigned i = 0; i < shapes_count; i++)
        for (unsigned k = 0; k < damages_count; k++)
            if (!damages[k].fits || damages[k].fits(&shapes[i]))
                try_cuts(&shapes[i], &damages[k], seed + i * damages_count + k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(no_cut_makes_it_worse)};
    return cmocka_run_group_tests(tests, memory_begin, scratch_end);
}
