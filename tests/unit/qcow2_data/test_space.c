// SPDX-License-Identifier: Apache-2.0
/*
 * No space from the N-th operation on that needs some, for every N, for a few operations; then there is space again. With
 * the policy to wait nobody sees an error: every request ends well, the content is right, and the image is sound without a
 * leak after it was closed.
 */
#include "fixture.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "model.h"

struct fault {
    struct io_seam seam; /* first */
    _Atomic long countdown;
    long length; /* so many fail */
};

static int fault_before(struct io_seam *seam, const struct io_seam_event *event)
{
    struct fault *fault = (struct fault *)seam;
    if (event->kind != SEAM_WRITE && event->kind != SEAM_ALLOCATE && event->kind != SEAM_ZERO)
        return 0;
    long left = atomic_fetch_sub(&fault->countdown, 1);
    return left <= 1 && left > 1 - fault->length ? -ENOSPC : 0;
}

/* True when the fault happened. */
static bool try_fault(const struct kind *kind, long n, long length, uint64_t seed)
{
    struct model_options options = {.size = kind->size,
                                    .seed = seed,
                                    .depth = 4,
                                    .operations = 40,
                                    .alignment = 512,
                                    .max_length = kind->cluster_size < 4096 ? 16384 : 150000};
    const char *path = scratch("space.qcow2");
    kind_create(kind, path);
    struct model *model = model_create(&options);
    uint8_t *below = malloc(kind->size);
    assert_non_null(below);
    for (uint64_t i = 0; i < kind->size; i++)
        below[i] = kind->overlay ? 0xbb : 0;
    model_set(model, 0, below, kind->size);
    free(below);
    struct fault fault = {.seam.before = fault_before, .length = length};
    atomic_store(&fault.countdown, INT32_MAX);
    struct image *image = kind_open(kind, path, false, &fault.seam);
    assert_non_null(image);
    image_wait_for_space(image, true);
    atomic_store(&fault.countdown, n);
    bool good = model_run(model, &model_image_target, image) == 0;
    bool happened = atomic_exchange(&fault.countdown, INT32_MAX) < 1;
    struct image_condition condition;
    image_condition(image, &condition);
    good = good && !condition.failed && !condition.waiting && !condition.refused;
    good = good && model_verify(model, &model_image_target, image) == 0;
    good = image_close(image, NULL) == 0 && good;
    good = good && check_image(path, false);
    if (good) {
        image = kind_open(kind, path, true, NULL);
        good = image && model_verify(model, &model_image_target, image) == 0;
        (void)image_close(image, NULL);
    }
    if (!good)
        fail_msg("%s: %ld operations without space from the %ld. on, seed %llu, failed %d, waiting %u, refused %llu",
                 kind->name, length, n, (unsigned long long)seed, condition.failed, condition.waiting,
                 (unsigned long long)condition.refused);
    (void)model_destroy(model);
    return happened;
}

static void every_operation(long length, long stride)
{
    for (unsigned i = 0; i < kinds_count; i++)
        for (long n = 1; n < 2000 && try_fault(&kinds[i], n, length, 4711); n += stride)
            ;
}

static void for_one_operation(void **state)
{
    (void)state;
    every_operation(1, 9);
}

static void for_some_operations(void **state)
{
    (void)state;
    every_operation(9, 19);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(for_one_operation),
        cmocka_unit_test(for_some_operations),
    };
    return cmocka_run_group_tests(tests, scratch_begin, scratch_end);
}
