// SPDX-License-Identifier: Apache-2.0
/*
 * The N-th operation on the image file fails, for every N, once and from then on, with EIO and with ENOSPC: whatever
 * happens, requests end, what was answered stays true as long as the image is open, and the file is an image with leaks at
 * most. Where nothing but single requests failed, closing succeeds and everything is there afterwards.
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
    bool sticky, flushes;
    int error;
};

static int fault_before(struct io_seam *seam, const struct io_seam_event *event)
{
    struct fault *fault = (struct fault *)seam;
    if (event->kind == SEAM_READ && fault->error == ENOSPC)
        return 0;
    if ((event->kind == SEAM_FLUSH) != fault->flushes)
        return 0;
    long left = atomic_fetch_sub(&fault->countdown, 1);
    return left == 1 || (left < 1 && fault->sticky && event->kind != SEAM_READ) ? -fault->error : 0;
}

/* True when the fault happened. */
static bool try_fault(const struct kind *kind, struct fault *fault, long n, uint64_t seed)
{
    static const int tolerated[] = {-EIO, -ENOSPC, EIO, ENOSPC, 0};
    struct model_options options = {.size = kind->size,
                                    .seed = seed,
                                    .depth = 4,
                                    .operations = 40,
                                    .alignment = 512,
                                    .max_length = kind->cluster_size < 4096 ? 16384 : 150000,
                                    .tolerate = tolerated};
    const char *path = scratch("fault.qcow2");
    kind_create(kind, path);
    struct model *model = model_create(&options);
    uint8_t *below = malloc(kind->size);
    assert_non_null(below);
    for (uint64_t i = 0; i < kind->size; i++)
        below[i] = kind->overlay ? 0xbb : 0;
    model_set(model, 0, below, kind->size);
    free(below);
    fault->seam.before = fault_before;
    atomic_store(&fault->countdown, n);
    struct image *image = kind_open(kind, path, false, &fault->seam);
    assert_non_null(image);
    bool good = model_run(model, &model_image_target, image) == 0;
    bool happened = atomic_load(&fault->countdown) < 1;
    if (happened && !fault->sticky)
        good = good && model_verify(model, &model_image_target, image) == 0;
    int closed = image_close(image, NULL);
    good = good && check_image(path, true);
    if (good && closed == 0 && !fault->sticky) {
        image = kind_open(kind, path, true, NULL);
        good = image && model_verify(model, &model_image_target, image) == 0;
        (void)image_close(image, NULL);
    }
    if (!good)
        fail_msg("%s: operation %ld (%s, %s, error %d), seed %llu", kind->name, n, fault->flushes ? "flush" : "other",
                 fault->sticky ? "sticky" : "once", fault->error, (unsigned long long)seed);
    (void)model_destroy(model);
    return atomic_load(&fault->countdown) < 1 || happened;
}

static void every_operation(const struct kind *kind, struct fault *fault, long stride)
{
    uint64_t seed = 4711;
    for (long n = 1; n < 2000; n += stride)
        if (!try_fault(kind, fault, n, seed))
            return;
}

static void other_operations_once(void **state)
{
    (void)state;
    for (unsigned i = 0; i < kinds_count; i++)
        every_operation(&kinds[i], &(struct fault){.error = EIO}, 6);
}

static void other_operations_for_good(void **state)
{
    (void)state;
    for (unsigned i = 0; i < kinds_count; i++)
        every_operation(&kinds[i], &(struct fault){.error = ENOSPC, .sticky = true}, 8);
}

static void flushes(void **state)
{
    (void)state;
    for (unsigned i = 0; i < kinds_count; i++) {
        every_operation(&kinds[i], &(struct fault){.error = EIO, .flushes = true}, 2);
        every_operation(&kinds[i], &(struct fault){.error = EIO, .flushes = true, .sticky = true}, 3);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(other_operations_once),
        cmocka_unit_test(other_operations_for_good),
        cmocka_unit_test(flushes),
    };
    return cmocka_run_group_tests(tests, scratch_begin, scratch_end);
}
