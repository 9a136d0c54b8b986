// SPDX-License-Identifier: Apache-2.0
/*
 * The allocator on real images: what it hands out is zero, inside the file, counted and nobody else's; what it is given
 * back is reused; a failure at any of its I/O operations leaves at most leaks, judged by qemu-img check.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "backends/format/qcow2/keeper.h"
#include "common/checked.h"
#include "common/cleanup.h"
#include "helpers.h"

#define CLUSTERS_MAX 65536u

struct fixture {
    char path[256];
    struct io_loop *loop;
    struct image *image;
    struct qcow2 *q;
    bool owned[CLUSTERS_MAX]; /* taken and not freed */
};

static int setup_loop(struct fixture *f, void **state)
{
    assert_int_equal(io_loop_create(&(struct io_loop_options){0}, &f->loop, NULL), 0);
    *state = f;
    return 0;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    scratch_make(f->path, sizeof(f->path));
    return setup_loop(f, state);
}

static int setup_in_memory(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    scratch_make_in_memory(f->path, sizeof(f->path));
    return setup_loop(f, state);
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    (void)image_close(f->image, NULL);
    (void)io_loop_destroy(f->loop);
    scratch_remove(f->path);
    free(f);
    return 0;
}

static void start(struct fixture *f, const struct image_create_options *options)
{
    struct error err = ERROR_INIT;
    if (create(f->path, options, &err) < 0)
        fail_msg("%s", err.message);
    f->image = open_image(f->path, false, &err, NULL);
    if (!f->image)
        fail_msg("%s", err.message);
    f->q = image_qcow2(f->image);
    memset(f->owned, 0, sizeof(f->owned));
}

static int finish(struct fixture *f)
{
    f->q = NULL;
    return image_close(steal_ptr(&f->image), NULL);
}

/* Nobody's, zero, in the file; then filled, so that whoever gets it next would see that it was not made zero. */
static void own(struct fixture *f, uint64_t offset, uint64_t count)
{
    uint64_t size = f->q->cluster_size;
    uint64_t length = 0;
    CLEANUP_FREE uint8_t *buffer = malloc(count * size);
    assert_non_null(buffer);
    assert_true(is_aligned(offset, size) && offset >= size);
    assert_int_equal(io_file_length(f->q->base.file, &length), 0);
    assert_true(range_within(offset, count * size, length));
    assert_true(offset / size + count <= CLUSTERS_MAX);
    for (uint64_t i = 0; i < count; i++) {
        assert_false(f->owned[offset / size + i]);
        f->owned[offset / size + i] = true;
    }
    struct io_file *file = file_open(f->path); /* without the seam */
    assert_int_equal(io_file_read(file, buffer, count * size, offset), 0);
    for (uint64_t i = 0; i < count * size; i++)
        assert_int_equal(buffer[i], 0);
    memset(buffer, 0xa5, count * size);
    assert_int_equal(io_file_write(file, buffer, count * size, offset), 0);
    (void)io_file_close(file);
}

/* `total` clusters in pieces of up to `piece`. */
static int take_some(struct fixture *f, uint64_t total, uint64_t piece)
{
    while (total > 0) {
        uint64_t offset = 0;
        uint64_t count = 0;
        int r = take_wait(f->q, f->loop, MIN(piece, total), &offset, &count);
        if (r < 0)
            return r;
        assert_true(count >= 1 && count <= piece);
        if (!f->q->base.file->seam)
            own(f, offset, count);
        else
            for (uint64_t i = 0; i < count; i++) {
                assert_false(f->owned[offset / f->q->cluster_size + i]);
                f->owned[offset / f->q->cluster_size + i] = true;
            }
        total -= count;
    }
    return 0;
}

static void commit(struct fixture *f, int result)
{
    allocator_commit_begin(f->q->allocator);
    allocator_commit_end(f->q->allocator, result);
    settle(f->q);
}

/* Give up every `step`th group of `group` owned clusters. */
static uint64_t free_groups(struct fixture *f, uint64_t from, uint64_t step, uint64_t group)
{
    uint64_t freed = 0;
    for (uint64_t i = 0; i < CLUSTERS_MAX; i++) {
        if (!f->owned[i] || i / group % step != from)
            continue;
        allocator_free(f->q->allocator, i * f->q->cluster_size, 1);
        f->owned[i] = false;
        freed++;
    }
    return freed;
}

static uint64_t free_some(struct fixture *f, uint64_t from, uint64_t step)
{
    return free_groups(f, from, step, 1);
}

static uint64_t file_length(const struct fixture *f)
{
    struct stat st;
    assert_int_equal(stat(f->path, &st), 0);
    return (uint64_t)st.st_size;
}

static uint64_t space_used(const struct fixture *f)
{
    struct stat st;
    assert_int_equal(stat(f->path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

/* ---- tests --------------------------------------------------------------------------------------------------- */

static void test_nothing_taken(void **state)
{
    struct fixture *f = *state;
    start(f, &(struct image_create_options){.size = 64 * MIB});
    uint64_t before = file_length(f);
    assert_int_equal(take_some(f, 1, 1), 0);
    assert_true(file_length(f) > before);
    free_some(f, 0, 1);
    commit(f, 0);
    assert_int_equal(finish(f), 0);
    assert_int_equal(qemu_check(f->path), 0);
    assert_int_equal(file_length(f), before);
}

static void test_take_free_reuse(void **state)
{
    struct fixture *f = *state;
    for (uint32_t bits = 1; bits <= 64; bits *= 8) {
        start(f, &(struct image_create_options){.size = 64 * MIB, .cluster_size = 4096, .refcount_bits = bits});
        assert_int_equal(take_some(f, 3000, 7), 0);
        uint64_t length = file_length(f);
        for (unsigned round = 0; round < 5; round++) {
            uint64_t freed = free_some(f, round % 3, 3);
            commit(f, 0);
            assert_int_equal(take_some(f, freed, 5), 0);
        }
        settle(f->q);
        /* Reused, not added: the runs reserved ahead are all that may have come on top. */
        assert_true(file_length(f) <= length + 2 * f->q->allocator->run * 4096 + MIB);
        assert_int_equal(f->q->allocator->underflows, 0);
        assert_int_equal(f->q->allocator->refused, 0);
        free_some(f, 0, 1);
        commit(f, 0);
        assert_int_equal(finish(f), 0);
        assert_int_equal(qemu_check(f->path), 0);
        assert_true(space_used(f) < 40 * 4096); /* refcount blocks stay where they are */
    }
}

/* Freed clusters are nobody's until the commit ended well. */
static void test_free_waits_for_commit(void **state)
{
    struct fixture *f = *state;
    start(f, &(struct image_create_options){.size = 64 * MIB});
    assert_int_equal(take_some(f, 10, 10), 0);
    free_some(f, 0, 1);
    assert_true(allocator_has_freed(f->q->allocator));
    uint64_t head = f->q->allocator->head;
    commit(f, -EIO);
    assert_true(allocator_has_freed(f->q->allocator));
    assert_int_equal(f->q->allocator->head, head);
    commit(f, 0);
    assert_false(allocator_has_freed(f->q->allocator));
    assert_true(f->q->allocator->head > head);
    assert_int_equal(finish(f), 0);
    assert_int_equal(qemu_check(f->path), 0);
}

/* Far more single extents than the ring has room for at first: none is lost, as the keeper makes it larger. */
static void test_many_frees(void **state)
{
    struct fixture *f = *state;
    start(f, &(struct image_create_options){.size = 128 * MIB, .cluster_size = 512});
    assert_int_equal(take_some(f, 50000, 64), 0);
    assert_false(allocator_pressure(f->q->allocator));
    for (uint64_t i = 0; i < CLUSTERS_MAX; i += 2) {
        if (!f->owned[i])
            continue;
        allocator_free(f->q->allocator, i * 512, 1);
        f->owned[i] = false;
        if (i % 4096 == 0)
            settle(f->q);
    }
    assert_true(allocator_pressure(f->q->allocator));
    assert_int_equal(f->q->allocator->leaked, 0);
    commit(f, 0);
    assert_false(allocator_pressure(f->q->allocator));
    free_some(f, 0, 1);
    commit(f, 0);
    assert_int_equal(finish(f), 0);
    assert_int_equal(qemu_check(f->path), 0);
}

static void test_blocking(void **state)
{
    struct fixture *f = *state;
    for (uint32_t bits = 1; bits <= 64; bits *= 8) {
        start(f, &(struct image_create_options){.size = 64 * MIB, .cluster_size = 512, .refcount_bits = bits});
        uint64_t offset = 0;
        for (uint64_t count = 1; count < 5000; count = count * 3 + 1) {
            assert_int_equal(allocator_take_blocking(f->q->allocator, count, &offset, NULL), 0);
            own(f, offset, count);
            assert_int_equal(take_some(f, 20, 3), 0);
        }
        free_some(f, 0, 1);
        commit(f, 0);
        assert_int_equal(finish(f), 0);
        assert_int_equal(qemu_check(f->path), 0);
        assert_true(space_used(f) < 2 * MIB);
    }
}

/* Counts that say free where tables are: nothing there is handed out, and nothing more is written. */
static void test_overlap_guard(void **state)
{
    struct fixture *f = *state;
    struct image_create_options options = {.size = 64 * MIB};
    assert_int_equal(create(f->path, &options, NULL), 0);
    uint64_t block = peek_be64(f->path, 65536);
    poke_be64(f->path, block, 0); /* clusters 0 to 3: header, table, block, L1 */
    f->image = open_image(f->path, false, NULL, NULL);
    assert_non_null(f->image);
    f->q = image_qcow2(f->image);
    int r = 0;
    for (unsigned i = 0; r == 0; i++) {
        assert_true(i < 1000);
        r = take_some(f, 1, 1);
    }
    assert_int_equal(r, -EUCLEAN);
    for (unsigned i = 0; i < 4; i++)
        assert_false(f->owned[i]);
    assert_true(f->q->allocator->refused > 0);
    assert_int_equal(finish(f), -EUCLEAN);
    assert_int_equal(peek_be64(f->path, 72), QCOW2_INCOMPATIBLE_CORRUPT);
}

/* A hostile L2 entry has tables freed: they are neither punched nor uncounted. */
static void test_free_of_tables(void **state)
{
    struct fixture *f = *state;
    start(f, &(struct image_create_options){.size = 64 * MIB});
    assert_int_equal(take_some(f, 100, 3), 0);
    uint64_t counts = peek_be64(f->path, peek_be64(f->path, 65536));
    allocator_free(f->q->allocator, 65536, 3);
    commit(f, 0);
    assert_true(f->q->allocator->refused > 0);
    struct image_info info;
    assert_int_equal(image_probe(f->q->base.file, "qcow2", &info, NULL), 0);
    assert_int_equal(finish(f), -EUCLEAN);
    assert_int_equal(peek_be64(f->path, peek_be64(f->path, 65536)), counts);
    assert_int_equal(peek_be64(f->path, 72), QCOW2_INCOMPATIBLE_CORRUPT);
    assert_int_equal(qemu_check(f->path), 3);
}

/* ---- several threads ----------------------------------------------------------------------------------------- */

#define THREADS 4u

struct crowd {
    struct fixture *f;
    pthread_t thread;
    unsigned seed;
    _Atomic unsigned *users; /* of each cluster */
    pthread_mutex_t *commit; /* one at a time, as the data path has it */
};

/* Take, use, give back: no cluster may have two users at a time. */
static void *crowd_main(void *arg)
{
    struct crowd *c = arg;
    struct qcow2 *q = c->f->q;
    struct io_loop *loop = NULL;
    assert_int_equal(io_loop_create(&(struct io_loop_options){0}, &loop, NULL), 0);
    for (unsigned round = 0; round < 400; round++) {
        uint64_t offset = 0;
        uint64_t count = 0;
        assert_int_equal(take_wait(q, loop, 1 + (unsigned)rand_r(&c->seed) % 40, &offset, &count), 0);
        uint64_t first = offset / q->cluster_size;
        assert_true(first + count <= CLUSTERS_MAX);
        for (uint64_t i = first; i < first + count; i++)
            assert_int_equal(atomic_fetch_add(&c->users[i], 1), 0);
        uint64_t kept = round % 8 ? 0 : MIN(count, 2);
        for (uint64_t i = first + kept; i < first + count; i++)
            atomic_fetch_sub(&c->users[i], 1);
        allocator_free(q->allocator, (first + kept) * q->cluster_size, count - kept);
        if (allocator_pressure(q->allocator) || round % 16 == 0) {
            LOCK_SCOPE(c->commit);
            allocator_commit_begin(q->allocator);
            allocator_commit_end(q->allocator, round % 5 ? 0 : -EIO);
        }
    }
    (void)io_loop_destroy(loop);
    return NULL;
}

static void test_several_threads(void **state)
{
    struct fixture *f = *state;
    static _Atomic unsigned users[CLUSTERS_MAX];
    struct crowd crowd[THREADS];
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    memset((void *)users, 0, sizeof(users));
    start(f, &(struct image_create_options){.size = 64 * MIB, .cluster_size = 4096});
    for (unsigned i = 0; i < THREADS; i++) {
        crowd[i] = (struct crowd){.f = f, .seed = i, .users = users, .commit = &lock};
        assert_int_equal(pthread_create(&crowd[i].thread, NULL, crowd_main, &crowd[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++)
        (void)pthread_join(crowd[i].thread, NULL);
    commit(f, 0);
    assert_int_equal(f->q->allocator->underflows, 0);
    assert_int_equal(f->q->allocator->refused, 0);
    assert_int_equal(f->q->allocator->leaked, 0);
    for (uint64_t i = 0; i < CLUSTERS_MAX; i++)
        if (users[i])
            allocator_free(f->q->allocator, i * 4096, 1);
    commit(f, 0);
    assert_int_equal(finish(f), 0);
    assert_int_equal(qemu_check(f->path), 0);
}

/* ---- failures ------------------------------------------------------------------------------------------------ */

struct failing {
    struct io_seam seam;
    unsigned countdown; /* 0 = fails now */
    int error;
    bool sticky, armed;
    uint64_t space; /* SEAM_ALLOCATE beyond this fails with -ENOSPC; 0 = no limit */
    unsigned fired;
};

static int fail_before(struct io_seam *seam, const struct io_seam_event *event)
{
    struct failing *failing = (struct failing *)seam;
    if (failing->space && event->kind == SEAM_ALLOCATE && event->offset + event->length > failing->space)
        return -ENOSPC;
    if (!failing->armed)
        return 0;
    if (__atomic_load_n(&failing->countdown, __ATOMIC_RELAXED) > 0) {
        __atomic_sub_fetch(&failing->countdown, 1, __ATOMIC_RELAXED);
        return 0;
    }
    if (__atomic_fetch_add(&failing->fired, 1, __ATOMIC_RELAXED) > 0 && !failing->sticky)
        return 0;
    return failing->error;
}

/* Goes on after errors, as guests do. */
static void workload(struct fixture *f)
{
    uint64_t offset = 0;
    (void)take_some(f, 700, 50);
    (void)free_groups(f, 0, 2, 256);
    commit(f, 0);
    (void)take_some(f, 400, 9);
    (void)allocator_take_blocking(f->q->allocator, 300, &offset, NULL);
    (void)take_some(f, 3500, 100);
    (void)image_resize(f->image, 64 * MIB, NULL);
    (void)free_groups(f, 1, 3, 1024);
    commit(f, 0);
    (void)take_some(f, 100, 9);
    free_some(f, 0, 1);
    commit(f, 0);
}

static bool fail_at(struct fixture *f, unsigned n, int error, bool sticky)
{
    struct failing failing = {.seam.before = fail_before, .countdown = n, .error = error, .sticky = sticky};
    start(f, &(struct image_create_options){.size = 4 * MIB, .cluster_size = 512, .refcount_bits = 64});
    io_file_set_seam(f->q->base.file, &failing.seam);
    failing.armed = true;
    workload(f);
    (void)finish(f);
    int status = qemu_check(f->path);
    if (status != 0 && status != 3)
        fail_msg("operation %u fails with %d (%s): errors in the image", n, error, sticky ? "from then on" : "once");
    return failing.fired > 0;
}

static void test_every_failure(void **state)
{
    struct fixture *f = *state;
    static const int errors[] = {-EIO, -ENOSPC};
    for (unsigned e = 0; e < ARRAY_SIZE(errors); e++)
        for (unsigned sticky = 0; sticky < 2; sticky++) {
            /* The first ones all, of the rest (which repeat) another share in each round. */
            unsigned n = 0;
            while (fail_at(f, n, errors[e], sticky))
                n += n < 40 + e * 2 + sticky ? 1 : 11;
            print_message("%u operations, each failed with %d %s\n", n, errors[e], sticky ? "from then on" : "once");
            assert_true(n > 30);
        }
}

static void test_no_space(void **state)
{
    struct fixture *f = *state;
    struct failing failing = {.seam.before = fail_before, .space = 8 * MIB};
    start(f, &(struct image_create_options){.size = 1 * GIB});
    io_file_set_seam(f->q->base.file, &failing.seam);
    /* All that fits is used, in halved runs, then it is refused, again and again. */
    int r = 0;
    unsigned taken = 0;
    for (; (r = take_some(f, 1, 1)) == 0; taken++)
        continue;
    assert_int_equal(r, -ENOSPC);
    assert_true(taken >= 100 && taken < 128);
    assert_int_equal(take_some(f, 1, 1), -ENOSPC);
    /* Freed space can be had. */
    allocator_free(f->q->allocator, 64 * 65536, 8);
    memset(f->owned + 64, 0, 8);
    commit(f, 0);
    assert_int_equal(take_some(f, 8, 8), 0);
    assert_int_equal(take_some(f, 1, 1), -ENOSPC);
    /* And new space once there is some. */
    failing.space = 0;
    assert_int_equal(take_some(f, 300, 8), 0);
    free_some(f, 0, 1);
    commit(f, 0);
    assert_int_equal(finish(f), 0);
    assert_int_equal(qemu_check(f->path), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_nothing_taken, setup, teardown),
        cmocka_unit_test_setup_teardown(test_take_free_reuse, setup, teardown),
        cmocka_unit_test_setup_teardown(test_free_waits_for_commit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many_frees, setup_in_memory, teardown),
        cmocka_unit_test_setup_teardown(test_blocking, setup, teardown),
        cmocka_unit_test_setup_teardown(test_overlap_guard, setup, teardown),
        cmocka_unit_test_setup_teardown(test_free_of_tables, setup, teardown),
        cmocka_unit_test_setup_teardown(test_several_threads, setup_in_memory, teardown),
        cmocka_unit_test_setup_teardown(test_no_space, setup, teardown),
        cmocka_unit_test_setup_teardown(test_every_failure, setup_in_memory, teardown),
    };
    return have_qemu_img() ? cmocka_run_group_tests(tests, NULL, NULL) : SKIP;
}
