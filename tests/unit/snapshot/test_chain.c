// SPDX-License-Identifier: Apache-2.0
/*
 * Snapshots one after another, against the differential model: between loads, when every frozen layer must be what the model
 * was; under load on several queues that come and go; and what is refused.
 */
#include "fixture.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

#define SIZE (UINT64_C(2) << 20)
#define MANY 30u

/* ---- thirty in a row ---- */

static void read_image(struct image *image, uint8_t *content)
{
    struct client client;
    client_open(&client, image);
    assert_int_equal(client_op(&client, IMAGE_READ, 0, content, SIZE), 0);
    client_close(&client);
}

static void many_of(const struct kind *kind)
{
    struct error err = ERROR_INIT;
    struct model_options options = {
        .size = SIZE, .threads = 2, .depth = 4, .operations = 20, .alignment = 512, .max_length = 100000};
    uint8_t *moments = malloc(MANY * SIZE), *content = malloc(SIZE);
    assert_non_null(moments);
    assert_non_null(content);
    layer_create(kind, 0, SIZE);
    struct image *image = chain_open(kind, 0, false);
    struct model *model = model_create(&options);
    for (unsigned i = 0; i < MANY; i++) {
        assert_int_equal(model_run(model, &model_image_target, image), 0);
        read_image(image, moments + i * SIZE);
        layer_create(kind, i + 1, SIZE);
        if (chain_snapshot(kind, image, i + 1, &err) < 0)
            fail_msg("%s, snapshot %u: %s", kind->name, i, err.message);
        if (i % 10)
            continue;
        /* While the image is open and goes on. */
        chain_read(kind, i, content, SIZE);
        assert_memory_equal(content, moments + i * SIZE, SIZE);
    }
    assert_int_equal(model_run(model, &model_image_target, image), 0);
    assert_int_equal(model_verify(model, &model_image_target, image), 0);
    assert_int_equal(image_close(image, NULL), 0);
    for (unsigned i = 0; i < MANY; i++) {
        assert_true(layer_format(kind, i)[0] == 'r' || check_image(layer_path(i), false));
        if (i % 3)
            continue;
        chain_read(kind, i, content, SIZE);
        assert_memory_equal(content, moments + i * SIZE, SIZE);
    }
    image = chain_open(kind, MANY, false);
    assert_int_equal(model_verify(model, &model_image_target, image), 0);
    assert_int_equal(image_close(image, NULL), 0);
    (void)model_destroy(model);
    free(moments);
    free(content);
}

static void many_in_a_row(void **state)
{
    (void)state;
    for (unsigned i = 0; i < kinds_count; i++)
        many_of(&kinds[i]);
}

/* ---- under load ---- */

struct load {
    pthread_t thread;
    struct image *image;
    struct model *model;
    int result;
    _Atomic bool running;
};

static void *load_main(void *arg)
{
    struct load *load = arg;
    /* Several runs, so that queues come and go meanwhile. */
    for (unsigned i = 0; i < 4 && load->result == 0; i++)
        load->result = model_run(load->model, &model_image_target, load->image);
    atomic_store(&load->running, false);
    return NULL;
}

static void load_of(const struct kind *kind)
{
    struct error err = ERROR_INIT;
    struct model_options options = {
        .size = SIZE, .threads = 3, .depth = 8, .operations = 250, .alignment = 512, .max_length = 60000};
    layer_create(kind, 0, SIZE);
    struct image *image = chain_open(kind, 0, false);
    struct load load = {.image = image, .model = model_create(&options), .running = true};
    assert_int_equal(pthread_create(&load.thread, NULL, load_main, &load), 0);
    unsigned top = 0;
    while (top < MANY && (top < 3 || atomic_load(&load.running))) {
        layer_create(kind, ++top, SIZE);
        if (chain_snapshot(kind, image, top, &err) < 0)
            fail_msg("%s, snapshot %u: %s", kind->name, top, err.message);
    }
    assert_int_equal(pthread_join(load.thread, NULL), 0);
    assert_int_equal(load.result, 0);
    assert_int_equal(model_verify(load.model, &model_image_target, image), 0);
    assert_int_equal(image_close(image, NULL), 0);
    image = chain_open(kind, top, true);
    assert_int_equal(model_verify(load.model, &model_image_target, image), 0);
    assert_int_equal(image_close(image, NULL), 0);
    for (unsigned i = 0; i <= top; i++)
        assert_true(layer_format(kind, i)[0] == 'r' || check_image(layer_path(i), false));
    (void)model_destroy(load.model);
}

static void under_load(void **state)
{
    (void)state;
    for (unsigned i = 0; i < kinds_count; i++)
        load_of(&kinds[i]);
}

/* ---- refusals ---- */

static void expect_refusal(const struct kind *kind, struct image *image, unsigned number, int error)
{
    struct error err = ERROR_INIT;
    assert_int_equal(chain_snapshot(kind, image, number, &err), error);
    assert_true(err.message[0]);
}

static void refusals(void **state)
{
    static uint8_t bytes[4096];
    struct client client;
    (void)state;
    const struct kind *kind = &kinds[1];
    memset(bytes, 7, sizeof(bytes));
    layer_create(kind, 0, SIZE);
    struct image *image = chain_open(kind, 0, false);
    client_open(&client, image);
    layer_create(kind, 1, SIZE + 512);
    /* No other thread turns this queue's loop: what is refused is refused before any queue is asked. */
    expect_refusal(kind, image, 1, -EINVAL);
    expect_refusal(&(struct kind){.bottom = "raw"}, image, 0, -EINVAL);
    layer_create(kind, 1, SIZE);
    struct image *other = chain_open(kind, 1, false);
    struct client filler;
    client_open(&filler, other);
    assert_int_equal(client_op(&filler, IMAGE_WRITE, 0, bytes, sizeof(bytes)), 0);
    client_close(&filler);
    assert_int_equal(image_close(other, NULL), 0);
    expect_refusal(kind, image, 1, -EINVAL);
    assert_int_equal(client_op(&client, IMAGE_WRITE, 0, bytes, sizeof(bytes)), 0);
    client_close(&client);
    layer_create(kind, 1, SIZE);
    assert_int_equal(chain_snapshot(kind, image, 1, NULL), 0);
    assert_int_equal(image_close(image, NULL), 0);
    image = chain_open(kind, 1, true);
    layer_create(kind, 2, SIZE);
    expect_refusal(kind, image, 2, -EINVAL);
    assert_int_equal(image_close(image, NULL), 0);
}

/* The image grows over a snapshot: new space reads as zeros, the frozen layer keeps its size. */
static void grows_afterwards(void **state)
{
    static uint8_t bytes[SIZE], content[2 * SIZE];
    struct client client;
    (void)state;
    for (unsigned i = 0; i < kinds_count; i++) {
        memset(bytes, 0x5c, sizeof(bytes));
        layer_create(&kinds[i], 0, SIZE);
        struct image *image = chain_open(&kinds[i], 0, false);
        client_open(&client, image);
        assert_int_equal(client_op(&client, IMAGE_WRITE, 0, bytes, SIZE), 0);
        client_close(&client);
        layer_create(&kinds[i], 1, SIZE);
        assert_int_equal(chain_snapshot(&kinds[i], image, 1, NULL), 0);
        assert_int_equal(image_resize(image, 2 * SIZE, NULL), 0);
        client_open(&client, image);
        assert_int_equal(client_op(&client, IMAGE_READ, 0, content, 2 * SIZE), 0);
        assert_memory_equal(content, bytes, SIZE);
        for (uint64_t at = SIZE; at < 2 * SIZE; at++)
            assert_int_equal(content[at], 0);
        client_close(&client);
        layer_create(&kinds[i], 2, 2 * SIZE);
        assert_int_equal(chain_snapshot(&kinds[i], image, 2, NULL), 0);
        assert_int_equal(image_close(image, NULL), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many_in_a_row),
        cmocka_unit_test(under_load),
        cmocka_unit_test(refusals),
        cmocka_unit_test(grows_afterwards),
    };
    return run_on_engines(tests, sizeof(tests) / sizeof(tests[0]));
}
