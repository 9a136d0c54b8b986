// SPDX-License-Identifier: Apache-2.0
/*
 * Power cuts while a snapshot is taken under load: at every recorded operation on the old top's file. It is an image with leaks
 * at most, holds what was flushed before, and once the freeze has flushed, all that it will ever hold.
 */
#include "fixture.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../qcow2_data/record.h"

#define SIZE (UINT64_C(2) << 20)
#define HALF (SIZE / 2) /* the lower half is flushed and left alone, the upper one written all the time */
#define PART 20480u
#define CUTS 60u

struct load {
    pthread_t thread;
    struct image *image;
    unsigned seed;
    _Atomic unsigned writes;
    _Atomic bool stop;
};

static void *load_main(void *arg)
{
    static uint8_t bytes[PART];
    struct load *load = arg;
    struct client client;
    client_open(&client, load->image);
    while (!atomic_load(&load->stop)) {
        memset(bytes, rand_r(&load->seed), sizeof(bytes));
        uint64_t at = HALF + (uint64_t)rand_r(&load->seed) % (HALF - PART) / 512 * 512;
        enum image_op op = rand_r(&load->seed) % 5 ? IMAGE_WRITE : IMAGE_WRITE_ZEROES;
        assert_int_equal(client_op(&client, op, at, bytes, PART), 0);
        atomic_fetch_add(&load->writes, 1);
    }
    client_close(&client);
    return NULL;
}

static void wait_for_writes(struct load *load, unsigned more)
{
    unsigned from = atomic_load(&load->writes);
    while (atomic_load(&load->writes) - from < more)
        (void)usleep(1000);
}

/* When the last flush that this thread made within the snapshot was done: the freeze's. */
static uint64_t frozen_at(const struct recorder *r, uint64_t begin, uint64_t end)
{
    uint64_t at = 0;
    for (size_t i = 0; i < r->count; i++) {
        const struct record_entry *e = &r->entries[i];
        if (e->kind == SEAM_FLUSH && e->blocking && pthread_equal(e->thread, pthread_self()) && e->issued > begin &&
            e->done < end)
            at = e->done;
    }
    assert_true(at > 0);
    return at;
}

static void judge(const struct kind *kind, struct recorder *r, uint64_t moment, enum survive survive, unsigned *seed,
                  const uint8_t *expected, bool whole)
{
    static uint8_t content[SIZE];
    recorder_cut(r, moment, survive, seed, layer_path(1));
    assert_true(check_image(layer_path(1), true));
    chain_read(kind, 1, content, SIZE);
    assert_memory_equal(content, expected, HALF);
    if (whole && memcmp(content, expected, SIZE) != 0)
        fail_msg("%s: cut at %llu, survive %d: not complete", kind->name, (unsigned long long)moment, survive);
}

static void cuts_of(const struct kind *kind, unsigned seed)
{
    static uint8_t bytes[SIZE], expected[SIZE];
    struct recorder recorder;
    struct client client;
    layer_create(kind, 0, SIZE);
    struct image *image = chain_open(kind, 0, false);
    client_open(&client, image);
    memset(bytes, 0x77, sizeof(bytes));
    assert_int_equal(client_op(&client, IMAGE_WRITE, 0, bytes, SIZE), 0);
    client_close(&client);
    assert_int_equal(image_close(image, NULL), 0);

    layer_create(kind, 1, SIZE);
    layer_create(kind, 2, SIZE);
    recorder_init(&recorder, layer_path(1));
    struct image_layer layers[2] = {{"qcow2", file_open(layer_path(1), true)},
                                    {layer_format(kind, 0), file_open(layer_path(0), false)}};
    assert_int_equal(image_open(layers, 2, &(struct image_options){0}, &image, NULL), 0);
    io_file_set_seam(layers[0].file, &recorder.seam);
    client_open(&client, image);
    for (uint64_t at = 0; at + PART <= HALF; at += UINT64_C(2) * PART)
        assert_int_equal(client_op(&client, IMAGE_WRITE, at, bytes, PART / 2), 0);
    assert_int_equal(client_op(&client, IMAGE_FLUSH, 0, NULL, 0), 0);
    client_close(&client);
    struct load load = {.image = image, .seed = seed};
    assert_int_equal(pthread_create(&load.thread, NULL, load_main, &load), 0);
    wait_for_writes(&load, 20);
    uint64_t begin = recorder_now(&recorder);
    assert_int_equal(chain_snapshot(kind, image, 2, NULL), 0);
    uint64_t end = recorder_now(&recorder);
    wait_for_writes(&load, 20);
    atomic_store(&load.stop, true);
    assert_int_equal(pthread_join(load.thread, NULL), 0);
    assert_int_equal(image_close(image, NULL), 0);

    uint64_t frozen = frozen_at(&recorder, begin, end);
    assert_true(check_image(layer_path(1), false));
    chain_read(kind, 1, expected, SIZE);
    uint64_t step = (end - begin) / CUTS + 1;
    for (uint64_t moment = begin; moment <= end; moment += moment < frozen ? step : 1)
        judge(kind, &recorder, moment, (enum survive)(moment % 4), &seed, expected, moment >= frozen);
    for (unsigned survive = 0; survive < 4; survive++)
        judge(kind, &recorder, frozen, (enum survive)survive, &seed, expected, true);
    recorder_done(&recorder);
}

static void any_cut_leaves_the_frozen_layer(void **state)
{
    const char *given = getenv("PLATTER_SEED");
    unsigned seed = given ? (unsigned)strtoul(given, NULL, 0) : (unsigned)getpid();
    (void)state;
    print_message("seed %u (PLATTER_SEED)\n", seed);
    for (unsigned i = 0; i < kinds_count; i++)
        cuts_of(&kinds[i], seed + i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(any_cut_leaves_the_frozen_layer)};
    return run_on_engines(tests, sizeof(tests) / sizeof(tests[0]));
}
