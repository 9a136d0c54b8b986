// SPDX-License-Identifier: Apache-2.0
/* Every kind of damage in every shape of image: found, by one pass and by many; repaired; the content kept; fit for use. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/checked.h"
#include "damage.h"

#define LITTLE 4096u /* bytes: windows of 1024 clusters */

static void same_check(const struct image_check *a, const struct image_check *b, const char *shape, const char *what)
{
    if (a->leaks != b->leaks || a->low_counts != b->low_counts || a->copied_flags != b->copied_flags ||
        a->bad_entries != b->bad_entries || a->double_use != b->double_use || a->allocated != b->allocated)
        fail_msg("%s, %s: little memory counts differently", shape, what);
}

static uint64_t all(const struct image_check *k)
{
    return check_errors(k) + k->leaks + k->copied_flags;
}

static void repair_one(const struct shape *s, const struct damage *d, size_t memory)
{
    const char *path = scratch("check.qcow2");
    struct image_check found, again, little;
    bool failed;
    shape_create(s, path);
    uint8_t *expected = shape_read(s, path, &failed);
    assert_false(failed);
    d->plant(s, path);
    uint8_t *read = shape_read(s, path, &failed);
    damage_expected(d, s, expected, read);
    free(read);
    check_file(path, false, 0, NULL, &found);
    check_file(path, false, LITTLE, NULL, &little);
    same_check(&found, &little, s->name, d->name);
    if (*(uint64_t *)((char *)&found + d->counter) == 0)
        fail_msg("%s, %s: not found", s->name, d->name);
    check_file(path, true, memory, NULL, &found);
    check_file(path, false, 0, NULL, &again);
    if (!check_clean(&again) || found.repaired != all(&found))
        fail_msg("%s, %s: repaired %llu of %llu, left %llu", s->name, d->name, (unsigned long long)found.repaired,
                 (unsigned long long)all(&found), (unsigned long long)all(&again));
    uint8_t *content = shape_read(s, path, &failed);
    if (!content || failed || memcmp(content, expected, shape_read_length(s)) != 0)
        fail_msg("%s, %s: the content is not what it was", s->name, d->name);
    free(content);
    free(expected);
    shape_use(s, path);
    check_file(path, false, 0, NULL, &again);
    if (all(&again))
        fail_msg("%s, %s: using it did damage", s->name, d->name);
}

static void every_damage_is_repaired(void **state)
{
    (void)state;
    for (unsigned i = 0; i < shapes_count; i++)
        for (unsigned k = 0; k < damages_count; k++)
            if (!damages[k].fits || damages[k].fits(&shapes[i]))
                repair_one(&shapes[i], &damages[k], (i + k) % 2 ? LITTLE : 0);
}

static void healthy_images_are_left_alone(void **state)
{
    const char *path = scratch("check.qcow2");
    (void)state;
    for (unsigned i = 0; i < shapes_count; i++) {
        struct image_check found;
        shape_create(&shapes[i], path);
        check_file(path, true, 0, NULL, &found);
        assert_true(check_clean(&found));
        assert_int_equal(found.repaired, 0);
        assert_int_equal(found.allocated, 12);
    }
}

static void header_bits_go_when_all_is_well(void **state)
{
    const char *path = scratch("check.qcow2");
    struct image_check found;
    (void)state;
    shape_create(&shapes[0], path);
    poke(path, 72, 3);
    check_file(path, false, 0, NULL, &found);
    assert_true(found.dirty && found.corrupt);
    assert_int_equal(peek(path, 72), 3);
    check_file(path, true, 0, NULL, &found);
    assert_true(found.dirty && found.corrupt);
    assert_int_equal(peek(path, 72), 0);
}

/* Nothing is called unused while a part of the tables cannot be followed. */
static void unreadable_snapshots_forbid_repair(void **state)
{
    const char *path = scratch("check.qcow2");
    struct image_check found, again;
    (void)state;
    shape_create(&shapes[0], path);
    poke(path, 64, peek(path, 40)); /* the L1 table as snapshot table */
    poke(path, 56, peek(path, 56) | 1);
    damages[0].plant(&shapes[0], path);
    check_file(path, true, 0, NULL, &found);
    assert_true(found.bad_entries > 0 && found.leaks > 0);
    assert_int_equal(found.repaired, 0);
    check_file(path, false, 0, NULL, &again);
    assert_int_equal(again.leaks, found.leaks);
}

static int stop(void *context, uint64_t done, uint64_t total)
{
    assert_true(done <= total);
    ++*(int *)context;
    return 1;
}

static void progress_can_end_it(void **state)
{
    static const struct shape shape = {"long", {.cluster_size = 2 * MIB}};
    const char *path = scratch("check.qcow2");
    int calls = 0;
    (void)state;
    shape_create(&shape, path);
    struct image_check_options options = {.progress = stop, .context = &calls};
    struct image_check found = {.leaks = 7};
    struct io_file *file = file_open(path, false);
    assert_int_equal(image_check(file, "qcow2", &options, &found, NULL), -ECANCELED);
    assert_int_equal(calls, 1);
    assert_int_equal(found.leaks, 7);
    options.repair = true;
    assert_int_equal(image_check(file, "qcow2", &options, &found, NULL), -EROFS);
    (void)io_file_close(file);
}

static void unusable_headers_are_refused(void **state)
{
    const char *path = scratch("check.qcow2");
    struct image_check_options options = {0};
    struct image_check found;
    struct error err = ERROR_INIT;
    (void)state;
    shape_create(&shapes[0], path);
    poke(path, 40, UINT64_C(1) << 50);
    struct io_file *file = file_open(path, false);
    assert_int_equal(image_check(file, "qcow2", &options, &found, &err), -EUCLEAN);
    assert_string_equal(err.code, "corrupt-image");
    assert_int_equal(image_check(file, "raw", &options, &found, NULL), 0);
    assert_int_equal(found.clusters, 0);
    (void)io_file_close(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(healthy_images_are_left_alone),
        cmocka_unit_test(every_damage_is_repaired),
        cmocka_unit_test(header_bits_go_when_all_is_well),
        cmocka_unit_test(unreadable_snapshots_forbid_repair),
        cmocka_unit_test(progress_can_end_it),
        cmocka_unit_test(unusable_headers_are_refused),
    };
    return cmocka_run_group_tests(tests, memory_begin, scratch_end);
}
