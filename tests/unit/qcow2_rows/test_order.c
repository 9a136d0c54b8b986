// SPDX-License-Identifier: Apache-2.0
/* Bugs of order and of error paths: space that is reused too early, tables that are freed and still live, state that is
 * written too late. Each test's comment names the bug and who paid for it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/format/qcow2/reserve.h"
#include "common/checked.h"
#include "common/cleanup.h"
#include "model.h"
#include "rows.h"

/* ---- a late punch -------------------------------------------------------------------------------------------- */

struct pause {
    struct io_seam seam; /* first */
    struct rig *rig;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool armed, paused, go;
    unsigned unlocked; /* punches that somebody could have allocated under */
    uint64_t first_offset, first_length;
};

static int pause_before(struct io_seam *seam, const struct io_seam_event *event)
{
    struct pause *pause = (struct pause *)seam;
    if (event->kind != SEAM_DISCARD)
        return 0;
    LOCK_SCOPE(&pause->lock);
    if (!pause->armed)
        return 0;
    if (pthread_mutex_trylock(&pause->rig->q->allocator->work) == 0) {
        (void)pthread_mutex_unlock(&pause->rig->q->allocator->work);
        pause->unlocked++;
    }
    if (!pause->paused) {
        pause->first_offset = event->offset;
        pause->first_length = event->length;
        pause->paused = true;
    }
    while (!pause->go)
        (void)pthread_cond_wait(&pause->changed, &pause->lock);
    return 0;
}

/* cloud-hypervisor #8624: a cluster could be allocated before the punch of its old life was done; the late punch erased
 * a new L2 table. Here the punch is held up for as long as another request flushes and allocates. */
static void test_punch_is_over_before_space_is_reused(void **state)
{
    struct rig *rig = *state;
    static struct pause pause; /* the image is closed after this function where it fails */
    pause = (struct pause){.seam.before = pause_before, .rig = rig};
    (void)pthread_mutex_init(&pause.lock, NULL);
    (void)pthread_cond_init(&pause.changed, NULL);
    rig->seam = &pause.seam;
    rig_create(rig, &(struct image_create_options){.size = 512 * MIB});
    rig_open(rig);
    rig_write(rig, 0, 8 * CLUSTER, 1);
    rig_flush(rig);
    pause.armed = true;
    rig_discard(rig, 0, 4 * CLUSTER);
    rig_flush(rig);
    for (bool paused = false; !paused;) { /* the grace period needs the loop */
        assert_true(io_loop_turn(rig->loop, 1) >= 0);
        LOCK_SCOPE(&pause.lock);
        paused = pause.paused;
    }
    /* Reserved clusters are there, so none of this has to wait for the punch. */
    rig_write(rig, 64 * MIB, 4 * CLUSTER, 2);
    rig_flush(rig);
    {
        LOCK_SCOPE(&pause.lock);
        pause.go = true;
        (void)pthread_cond_broadcast(&pause.changed);
    }
    for (uint64_t at = 128 * MIB; at < 512 * MIB; at += 24 * MIB)
        rig_write(rig, at, 4 * CLUSTER, 3);
    rig_flush(rig);
    rig_settle(rig);
    {
        LOCK_SCOPE(&pause.lock);
        pause.armed = false;
    }
    assert_true(pause.first_length > 0);
    assert_int_equal(pause.unlocked, 0);
    rig_expect(rig, 0, 4 * CLUSTER, 0);
    rig_expect(rig, 4 * CLUSTER, 4 * CLUSTER, 1);
    rig_expect(rig, 64 * MIB, 4 * CLUSTER, 2);
    for (uint64_t at = 128 * MIB; at < 512 * MIB; at += 24 * MIB)
        rig_expect(rig, at, 4 * CLUSTER, 3);
    rig_close_clean(rig);
    (void)pthread_cond_destroy(&pause.changed);
    (void)pthread_mutex_destroy(&pause.lock);
}

/* ---- a table that moves -------------------------------------------------------------------------------------- */

struct fault {
    struct io_seam seam; /* first */
    _Atomic long countdown;
    int error;
};

static int fault_before(struct io_seam *seam, const struct io_seam_event *event)
{
    struct fault *fault = (struct fault *)seam;
    if (event->kind == SEAM_FLUSH || (event->kind == SEAM_READ && fault->error == ENOSPC))
        return 0;
    return atomic_fetch_sub(&fault->countdown, 1) == 1 ? -fault->error : 0;
}

/* One operation on the way of copying shared tables fails. False when there were not so many. */
static bool relocate_failing(struct rig *rig, long n, int error)
{
    static struct fault fault;
    fault.seam.before = fault_before;
    fault.error = error;
    atomic_store(&fault.countdown, 0);
    (void)remove(rig->path);
    command_or_fail("qemu-img create -q -f qcow2 -o cluster_size=4k '%s' 16M", rig->path);
    command_or_fail("qemu-io -c 'write -P 1 0 1M' -c 'write -P 2 6M 1M' '%s'", rig->path);
    command_or_fail("qemu-img snapshot -c one '%s'", rig->path);
    rig->seam = &fault.seam;
    rig_open(rig);
    atomic_store(&fault.countdown, n);
    int first = rig_io(rig, IMAGE_WRITE, 0, 64 * KIB, 3);
    int second = rig_io(rig, IMAGE_WRITE, 6 * MIB, 64 * KIB, 4);
    bool happened = atomic_load(&fault.countdown) < 1;
    atomic_store(&fault.countdown, 0);
    /* The guest goes on: whatever was given back wrongly is used again now. */
    (void)rig_io(rig, IMAGE_FLUSH, 0, 0, 0);
    for (uint64_t at = 8 * MIB; at < 12 * MIB; at += 64 * KIB)
        rig_write(rig, at, 64 * KIB, 5);
    rig_write(rig, 0, 64 * KIB, 6);
    rig_flush(rig);
    rig_settle(rig);
    for (uint64_t at = 12 * MIB; at < 15 * MIB; at += 64 * KIB)
        rig_write(rig, at, 64 * KIB, 7);
    rig_expect(rig, 0, 64 * KIB, 6);
    rig_expect(rig, 64 * KIB, MIB - 64 * KIB, 1);
    if (second == 0)
        rig_expect(rig, 6 * MIB, 64 * KIB, 4);
    rig_expect(rig, 6 * MIB + 64 * KIB, MIB - 64 * KIB, 2);
    assert_true(first == 0 || happened);
    assert_int_equal(rig_close(rig), 0);
    int status = qemu_check(rig->path);
    assert_true(status == 0 || status == 3);
    command_or_fail("qemu-img snapshot -a one '%s'", rig->path);
    command_or_fail("qemu-io -r -c 'read -P 1 0 1M' -c 'read -P 2 6M 1M' '%s'", rig->path);
    rig->seam = NULL;
    return happened;
}

/* cloud-hypervisor a5e145bd, #8606: an L2 table whose relocation failed stayed live and was on the free list. */
static void test_failed_table_relocation_frees_nothing_live(void **state)
{
    static const int errors[] = {EIO, ENOSPC};
    for (unsigned e = 0; e < 2; e++) {
        long n = 1;
        while (relocate_failing(*state, n, errors[e]))
            n++;
        assert_true(n > 4);
    }
}

/* ---- several queues ------------------------------------------------------------------------------------------ */

static void model_on(struct rig *rig, struct model *model, const char *what)
{
    /* Nobody would turn the rig's own loop meanwhile, and requests that want the image alone wait for every queue. */
    rig->queue = image_queue_destroy(rig->queue);
    bool wrong =
        model_run(model, &model_image_target, rig->image) || model_verify(model, &model_image_target, rig->image);
    assert_int_equal(image_queue_create(rig->image, rig->loop, &rig->queue, NULL), 0);
    if (wrong)
        fail_msg("%s", what);
}

/* cloud-hypervisor #7660, #7665: queues shared one file position and one cache, and read each other's clusters. */
static void test_queues_share_no_position_and_no_slice(void **state)
{
    struct rig *rig = *state;
    struct model_options options = {.size = 4 * MIB, .threads = 8, .depth = 8, .operations = 1200, .max_length = 40000};
    struct model *model = model_create(&options);
    rig->cache_bytes = 4096; /* four slices of 512 bytes, or a few more */
    rig_create(rig, &(struct image_create_options){.size = options.size, .cluster_size = 512});
    rig_open(rig);
    model_on(rig, model, "eight queues");
    rig_close_clean(rig);
    rig_open(rig);
    options.operations = 1;
    model_set_options(model, &options);
    model_on(rig, model, "after opening it again");
    rig_close_clean(rig);
    model_destroy(model);
}

/* cloud-hypervisor #8621: several queues on an image with a backing file went wrong only once the image was warm and had
 * many L2 tables. */
static void test_warm_overlay_with_many_tables_and_queues(void **state)
{
    struct rig *rig = *state;
    struct model_options options = {.size = 8 * MIB, .threads = 1, .depth = 8, .operations = 2000, .max_length = 40000};
    rig->overlay = true;
    rig->cache_bytes = 64 * KIB;
    rig_create(rig, &(struct image_create_options){.size = options.size, .cluster_size = 512}); /* 256 tables */
    struct model *model = model_create(&options);
    uint8_t *below = malloc(options.size);
    assert_non_null(below);
    memset(below, 0xbb, options.size);
    model_set(model, 0, below, options.size);
    free(below);
    rig_open(rig);
    model_on(rig, model, "filling");
    rig_close_clean(rig);
    options.threads = 16;
    options.operations = 400;
    model_set_options(model, &options);
    rig_open(rig);
    model_on(rig, model, "sixteen queues on a warm overlay");
    rig_close_clean(rig);
    model_destroy(model);
}

/* cloud-hypervisor 53ee9ebb: the first of several users to close declared the image clean. */
static void test_first_queue_to_go_closes_nothing(void **state)
{
    struct rig *rig = *state;
    struct image_queue *second = NULL;
    rig_create(rig, &(struct image_create_options){.size = 64 * MIB});
    rig_open(rig);
    assert_int_equal(image_queue_create(rig->image, rig->loop, &second, NULL), 0);
    rig_write(rig, 0, MIB, 1);
    uint64_t length = file_size(rig->path);
    second = image_queue_destroy(second);
    assert_null(second);
    /* Neither trimmed nor committed nor ended: the other goes on. */
    assert_int_equal(file_size(rig->path), length);
    rig_write(rig, 2 * MIB, MIB, 2);
    rig_flush(rig);
    rig_copy(rig);
    assert_int_equal(qemu_check(rig->copy), 3); /* what is reserved */
    command_or_fail("qemu-io -r -c 'read -P 1 0 1M' -c 'read -P 2 2M 1M' '%s'", rig->copy);
    rig_write(rig, 4 * MIB, MIB, 3);
    rig_close_clean(rig);
}

/* ---- drained ------------------------------------------------------------------------------------------------- */

/* cloud-hypervisor b68e7f3d: tables stayed in memory while the image was paused, and a copy of it lost what the guest had
 * been told was written. What drains our images (growing them) writes tables back, although nobody flushed. */
static void test_drained_image_holds_completed_writes(void **state)
{
    struct rig *rig = *state;
    rig_create(rig, &(struct image_create_options){.size = 64 * MIB});
    rig_open(rig);
    rig_write(rig, 5 * MIB, MIB, 1);
    assert_int_equal(rig_resize(rig, 65 * MIB), 0);
    rig_copy(rig);
    assert_int_equal(qemu_check(rig->copy), 3);
    command_or_fail("qemu-io -r -c 'read -P 1 5M 1M' '%s'", rig->copy);
    rig_close_clean(rig);
}

/* ---- zeroes over a backing file ------------------------------------------------------------------------------ */

/* cloud-hypervisor #8245: WRITE_ZEROES on an overlay showed the backing file's bytes again. */
static void test_zeroes_never_uncover_the_backing_file(void **state)
{
    struct rig *rig = *state;
    static const struct image_create_options kinds[] = {
        {.size = 4 * MIB},
        {.size = 4 * MIB, .version = 2},
        {.size = 4 * MIB, .cluster_size = 512},
        {.size = 4 * MIB, .extended_l2 = true},
    };
    rig->overlay = true;
    for (unsigned i = 0; i < ARRAY_SIZE(kinds); i++) {
        rig_create(rig, &kinds[i]);
        rig_open(rig);
        rig_write(rig, MIB, 256 * KIB, 1);
        assert_int_equal(rig_io(rig, IMAGE_WRITE_ZEROES, 0, 3 * MIB - 512, 0), 0);
        rig_expect(rig, 0, 3 * MIB - 512, 0);
        rig_expect(rig, 3 * MIB - 512, 512, 0xbb);
        rig_write(rig, 3 * MIB + 512, 512, 2);
        rig_discard(rig, 3 * MIB, 64 * KIB); /* may stay, may be zeros, never 0xbb */
        rig_write(rig, 2 * MIB + 3, 7, 3);
        rig_flush(rig);
        rig_copy(rig); /* the process dies here */
        assert_int_equal(rig_close(rig), 0);
        command_or_fail("qemu-io -r -c 'read -P 0 0 2M' -c 'read -P 0 %d 1048000' -c 'read -P 0xbb %d 512' '%s'",
                        2 * 1048576 + 10, 3 * 1048576 - 512, rig->copy);
        command_or_fail("mv '%s' '%s'", rig->copy, rig->path);
        rig_open(rig);
        rig_expect(rig, 0, 2 * MIB + 3, 0);
        rig_expect(rig, 2 * MIB + 3, 7, 3);
        rig_expect(rig, 2 * MIB + 10, MIB - 512 - 10, 0);
        rig_expect(rig, 3 * MIB - 512, 512, 0xbb);
        assert_int_equal(rig_close(rig), 0);
    }
}

/* ---- places ------------------------------------------------------------------------------------------------------ */

static int short_before(struct io_seam *seam, const struct io_seam_event *event)
{
    (void)seam;
    bool transfer = event->kind == SEAM_READ || event->kind == SEAM_WRITE;
    return transfer && event->length > 4096 ? (int)(event->length / 2) : 0;
}

/* cloud-hypervisor #6884: a short read or write was taken for the whole. */
static void test_short_transfers_are_continued(void **state)
{
    struct rig *rig = *state;
    static struct io_seam seam = {.before = short_before};
    struct model_options options = {.size = 4 * MIB, .threads = 2, .operations = 300, .max_length = 100000};
    struct model *model = model_create(&options);
    rig->seam = &seam;
    rig_create(rig, &(struct image_create_options){.size = options.size});
    rig_open(rig);
    model_on(rig, model, "short transfers");
    rig_close_clean(rig);
    model_destroy(model);
}

/* cloud-hypervisor 1dfb02aa (VHDX): the first write into a new block went to its start, whatever its offset. */
static void test_first_write_goes_to_its_place_in_the_cluster(void **state)
{
    struct rig *rig = *state;
    unsigned seed = 1;
    for (unsigned overlay = 0; overlay < 2; overlay++) {
        rig->overlay = overlay;
        rig_create(rig, &(struct image_create_options){.size = 4 * MIB, .extended_l2 = overlay});
        rig_open(rig);
        int old = overlay ? 0xbb : 0;
        for (uint64_t at = 0; at < 4 * MIB; at += CLUSTER) {
            uint64_t skip = (uint64_t)rand_r(&seed) % (CLUSTER - 1);
            uint64_t length = 1 + (uint64_t)rand_r(&seed) % (CLUSTER - skip);
            rig_write(rig, at + skip, length, 7);
            rig_expect(rig, at, skip, old);
            rig_expect(rig, at + skip, length, 7);
            rig_expect(rig, at + skip + length, CLUSTER - skip - length, old);
        }
        rig_close_clean(rig);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_punch_is_over_before_space_is_reused, rig_setup_in_memory, rig_teardown),
        cmocka_unit_test_setup_teardown(test_failed_table_relocation_frees_nothing_live, rig_setup_in_memory,
                                        rig_teardown),
        cmocka_unit_test_setup_teardown(test_queues_share_no_position_and_no_slice, rig_setup_in_memory, rig_teardown),
        cmocka_unit_test_setup_teardown(test_warm_overlay_with_many_tables_and_queues, rig_setup_in_memory,
                                        rig_teardown),
        cmocka_unit_test_setup_teardown(test_first_queue_to_go_closes_nothing, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_drained_image_holds_completed_writes, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_zeroes_never_uncover_the_backing_file, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_short_transfers_are_continued, rig_setup_in_memory, rig_teardown),
        cmocka_unit_test_setup_teardown(test_first_write_goes_to_its_place_in_the_cluster, rig_setup, rig_teardown),
    };
    return have_qemu_img() ? cmocka_run_group_tests(tests, NULL, NULL) : SKIP;
}
