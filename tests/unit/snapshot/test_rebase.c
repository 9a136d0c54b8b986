// SPDX-License-Identifier: Apache-2.0
/* Other layers below the top while it is in use: a flat copy for a chain and back, under load; with snapshots; refusals. */
#include "fixture.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "model.h"

#define SIZE (UINT64_C(2) << 20)
#define FROZEN 4u

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
    for (unsigned i = 0; i < 4 && load->result == 0; i++)
        load->result = model_run(load->model, &model_image_target, load->image);
    atomic_store(&load->running, false);
    return NULL;
}

/* The layers `from`, from - 1, ... 0 take their place below the top. */
static int rebase_on_chain(const struct kind *kind, struct image *image, unsigned from, struct error *err)
{
    struct image_layer layers[LAYERS_MAX];
    for (unsigned i = 0; i <= from; i++)
        layers[i] = (struct image_layer){layer_format(kind, from - i), file_open(layer_path(from - i), false)};
    int r = image_rebase(image, layers, from + 1, err);
    for (unsigned i = 0; r < 0 && i <= from; i++)
        (void)io_file_close(layers[i].file);
    return r;
}

static int rebase_on_flat(struct image *image, struct error *err)
{
    struct image_layer flat = {"raw", file_open(scratch("flat"), false)};
    int r = image_rebase(image, &flat, 1, err);
    if (r < 0)
        (void)io_file_close(flat.file);
    return r;
}

static void flatten(unsigned number, const struct kind *kind)
{
    char command[1000];
    (void)snprintf(command, sizeof(command), "qemu-img convert -U -f %s -O raw '%s' '%s'", layer_format(kind, number),
                   layer_path(number), scratch("flat"));
    assert_int_equal(system(command), 0);
}

static void rebases_of(const struct kind *kind)
{
    struct error err = ERROR_INIT;
    struct model_options options = {
        .size = SIZE, .threads = 3, .depth = 6, .operations = 200, .alignment = 512, .max_length = 60000};
    layer_create(kind, 0, SIZE);
    struct image *image = chain_open(kind, 0, false);
    struct load load = {.image = image, .model = model_create(&options), .running = true};
    for (unsigned i = 1; i <= FROZEN; i++) {
        assert_int_equal(model_run(load.model, &model_image_target, image), 0);
        layer_create(kind, i, SIZE);
        assert_int_equal(chain_snapshot(kind, image, i, NULL), 0);
    }
    flatten(FROZEN - 1, kind);
    assert_int_equal(pthread_create(&load.thread, NULL, load_main, &load), 0);
    for (unsigned i = 0; i < 40 && (i < 2 || atomic_load(&load.running)); i++) {
        int r = i % 2 ? rebase_on_chain(kind, image, FROZEN - 1, &err) : rebase_on_flat(image, &err);
        if (r < 0)
            fail_msg("%s, %u: %s", kind->name, i, err.message);
    }
    layer_create(kind, FROZEN + 1, SIZE);
    assert_int_equal(chain_snapshot(kind, image, FROZEN + 1, NULL), 0);
    assert_int_equal(rebase_on_chain(kind, image, FROZEN, NULL), 0);
    assert_int_equal(pthread_join(load.thread, NULL), 0);
    assert_int_equal(load.result, 0);
    assert_int_equal(model_verify(load.model, &model_image_target, image), 0);
    assert_int_equal(image_close(image, NULL), 0);
    image = chain_open(kind, FROZEN + 1, false);
    assert_int_equal(model_verify(load.model, &model_image_target, image), 0);
    assert_int_equal(image_close(image, NULL), 0);
    for (unsigned i = 1; i <= FROZEN + 1; i++)
        assert_true(check_image(layer_path(i), false));
    (void)model_destroy(load.model);
}

static void under_load(void **state)
{
    (void)state;
    for (unsigned i = 0; i < kinds_count; i++)
        rebases_of(&kinds[i]);
}

static void refusals(void **state)
{
    struct error err = ERROR_INIT;
    (void)state;
    const struct kind *kind = &kinds[1];
    layer_create(kind, 0, SIZE);
    layer_create(kind, 1, SIZE);
    layer_create(kind, 2, SIZE);
    struct image *image = chain_open(kind, 0, false);
    assert_int_equal(rebase_on_chain(kind, image, 0, &err), -EINVAL);
    assert_int_equal(image_close(image, NULL), 0);
    image = chain_open(kind, 2, false);
    /* Layer 1 names one below. */
    struct image_layer layer = {"qcow2", file_open(layer_path(1), false)};
    assert_int_equal(image_rebase(image, &layer, 1, &err), -EINVAL);
    assert_string_equal(error_code_word(&err), "backing-not-given");
    (void)io_file_close(layer.file);
    assert_int_equal(image_rebase(image, NULL, 0, &err), -EINVAL);
    assert_int_equal(image_close(image, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(under_load),
        cmocka_unit_test(refusals),
    };
    return run_on_engines(tests, sizeof(tests) / sizeof(tests[0]));
}
