// SPDX-License-Identifier: Apache-2.0
/*
 * The N-th operation during a snapshot fails, for every N, on the old top's file and on the new one's. Then either the snapshot
 * is there all the same, or the image goes on with the old top as it was, or it is fenced, as after any failed flush. Whatever
 * was flushed before is in the old layer in each case, whose file is an image with leaks at most.
 */
#include "fixture.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define SIZE (UINT64_C(2) << 20)
#define PART 65536u

struct fault {
    struct io_seam seam; /* first */
    _Atomic long countdown;
};

static int fault_before(struct io_seam *seam, const struct io_seam_event *event)
{
    struct fault *fault = (struct fault *)seam;
    (void)event;
    return atomic_fetch_sub(&fault->countdown, 1) == 1 ? -EIO : 0;
}

/* A client whose loop turns on a thread of its own, as a snapshot needs. */
struct served {
    pthread_t thread;
    struct client client;
    struct image *image;
    _Atomic bool ready, stop;
};

static void *served_main(void *arg)
{
    struct served *served = arg;
    client_open(&served->client, served->image);
    atomic_store(&served->ready, true);
    while (!atomic_load(&served->stop))
        assert_true(io_loop_turn(served->client.loop, 5) >= 0);
    client_close(&served->client);
    return NULL;
}

static int write_parts(struct image *image, uint8_t value, unsigned parts)
{
    static uint8_t bytes[PART];
    struct client client;
    int r = 0;
    memset(bytes, value, sizeof(bytes));
    client_open(&client, image);
    for (unsigned i = 0; i < parts && r == 0; i++)
        r = client_op(&client, IMAGE_WRITE, i * UINT64_C(2) * PART, bytes, PART);
    client_close(&client);
    return r;
}

static void expect_parts(const uint8_t *content, uint8_t value, unsigned parts)
{
    for (unsigned i = 0; i < parts; i++) {
        for (unsigned k = 0; k < PART; k++)
            assert_int_equal(content[(size_t)i * 2 * PART + k], value);
    }
}

struct outcome {
    bool happened, taken, fenced;
};

static struct outcome try_fault(const struct kind *kind, bool on_new, long n)
{
    static uint8_t content[SIZE];
    struct fault fault = {.seam.before = fault_before};
    struct outcome outcome = {0};
    struct error err = ERROR_INIT;
    layer_create(kind, 0, SIZE);
    layer_create(kind, 1, SIZE);
    struct image_layer old = {layer_format(kind, 0), file_open(layer_path(0), true)};
    struct image_layer new = {layer_format(kind, 1), file_open(layer_path(1), true)};
    struct image *image;
    assert_int_equal(image_open(&old, 1, &(struct image_options){0}, &image, NULL), 0);
    /* Flushed, and dirty on top of it. */
    assert_int_equal(write_parts(image, 0x11, 16), 0);
    struct client client;
    client_open(&client, image);
    assert_int_equal(client_op(&client, IMAGE_FLUSH, 0, NULL, 0), 0);
    client_close(&client);
    assert_int_equal(write_parts(image, 0x22, 8), 0);
    struct served served = {.image = image};
    assert_int_equal(pthread_create(&served.thread, NULL, served_main, &served), 0);
    while (!atomic_load(&served.ready))
        (void)sched_yield();
    atomic_store(&fault.countdown, n);
    io_file_set_seam(on_new ? new.file : old.file, &fault.seam);
    int r = image_snapshot(image, &new, &err);
    outcome.happened = atomic_exchange(&fault.countdown, 0) < 1;
    outcome.taken = r == 0;
    if (r < 0) {
        assert_true(err.message[0]);
        (void)io_file_close(new.file);
    }
    atomic_store(&served.stop, true);
    assert_int_equal(pthread_join(served.thread, NULL), 0);
    outcome.fenced = write_parts(image, 0x33, 4) < 0;
    assert_true(outcome.happened || (outcome.taken && !outcome.fenced));
    if (!outcome.taken && !outcome.fenced) {
        /* As if nothing had been: again, and it is there. */
        layer_create(kind, 1, SIZE);
        assert_int_equal(chain_snapshot(kind, image, 1, &err), 0);
    }
    int closed = image_close(image, NULL);
    assert_true(closed == 0 || outcome.fenced || outcome.happened);
    chain_read(kind, 0, content, SIZE);
    expect_parts(content + (size_t)16 * PART, 0x11, 8);
    if (!outcome.fenced) {
        expect_parts(content + (size_t)8 * PART, 0x22, 4);
        expect_parts(content, outcome.taken ? 0x22 : 0x33, 4);
        chain_read(kind, 1, content, SIZE);
        expect_parts(content, 0x33, outcome.taken ? 4 : 0);
    }
    assert_true(layer_format(kind, 0)[0] == 'r' || check_image(layer_path(0), true));
    assert_true(check_image(layer_path(1), true));
    return outcome;
}

static void faults_on(bool on_new)
{
    for (unsigned i = 0; i < kinds_count; i++) {
        unsigned went_on = 0, fenced = 0, taken = 0;
        for (long n = 1; n < 1000; n++) {
            struct outcome outcome = try_fault(&kinds[i], on_new, n);
            if (!outcome.happened)
                break;
            taken += outcome.taken;
            fenced += outcome.fenced;
            went_on += !outcome.taken && !outcome.fenced;
        }
        print_message("%s, %s: %u taken, %u went on, %u fenced\n", kinds[i].name, on_new ? "new" : "old", taken,
                      went_on, fenced);
        assert_true(!on_new || (went_on > 0 && fenced == 0));
        assert_true(on_new || fenced > 0);
    }
}

static void faults_of_the_old_top(void **state)
{
    (void)state;
    faults_on(false);
}

static void faults_of_the_new_top(void **state)
{
    (void)state;
    faults_on(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(faults_of_the_old_top),
        cmocka_unit_test(faults_of_the_new_top),
    };
    return run_on_engines(tests, sizeof(tests) / sizeof(tests[0]));
}
