// SPDX-License-Identifier: Apache-2.0
/* Raw images under the random load of the model: several queues, any alignment, also while the image grows. */
#include "fixture.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "model.h"

static void run(const char *directory, uint64_t size, bool buffered, const struct model_options *mix)
{
    struct image *image = raw_image(directory, size, buffered);
    struct model_options options = *mix;
    options.size = size;
    struct model *model = model_create(&options);
    assert_int_equal(model_run(model, &model_image_target, image), 0);
    assert_int_equal(model_verify(model, &model_image_target, image), 0);
    (void)model_destroy(model);
    image_done(image);
}

static void aligned_load(void **state)
{
    (void)state;
    run(NULL, 8 << 20, false, &(struct model_options){.threads = 3, .depth = 16, .operations = 1500, .alignment = 512});
}

static void load_of_any_alignment(void **state)
{
    (void)state;
    run(NULL, 4 << 20, false, &(struct model_options){.threads = 3, .depth = 8, .operations = 500});
}

static void load_through_the_page_cache(void **state)
{
    (void)state;
    run(NULL, (4 << 20) + 777, true, &(struct model_options){.threads = 3, .depth = 8, .operations = 1000});
}

static void direct_file_of_odd_length(void **state)
{
    (void)state;
    run(NULL, (1 << 20) + 777, false, &(struct model_options){.threads = 2, .depth = 8, .operations = 600});
}

static void load_where_nothing_can_be_zeroed(void **state)
{
    (void)state;
    run("/dev/shm", 4 << 20, false, &(struct model_options){.threads = 3, .depth = 8, .operations = 800});
}

/* ---- growing under load ---- */

struct grower {
    struct image *image;
    uint64_t size;
    int result;
};

static void *grow_main(void *arg)
{
    struct grower *g = arg;
    for (int i = 1; i <= 20 && g->result == 0; i++) {
        g->result = image_resize(g->image, g->size + (uint64_t)i * 65536, NULL);
        if (g->result == 0 && i % 4 == 0)
            g->result = image_resize(g->image, 0, NULL) == -EINVAL ? 0 : -1;
        (void)usleep(1000);
    }
    return NULL;
}

static void growing_under_load(void **state)
{
    (void)state;
    struct image *image = raw_image(NULL, 2 << 20, false);
    struct model_options options = {.size = 2 << 20, .threads = 2, .depth = 8, .operations = 800};
    struct model *model = model_create(&options);
    struct grower grower = {image, 2 << 20, 0};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, grow_main, &grower), 0);
    int r = model_run(model, &model_image_target, image);
    (void)pthread_join(thread, NULL);
    assert_int_equal(r, 0);
    assert_int_equal(grower.result, 0);
    model_grow(model, (2 << 20) + 20 * 65536);
    assert_int_equal(model_verify(model, &model_image_target, image), 0);
    assert_int_equal(model_run(model, &model_image_target, image), 0);
    assert_int_equal(model_verify(model, &model_image_target, image), 0);
    (void)model_destroy(model);
    image_done(image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(aligned_load),
        cmocka_unit_test(load_of_any_alignment),
        cmocka_unit_test(load_through_the_page_cache),
        cmocka_unit_test(direct_file_of_odd_length),
        cmocka_unit_test(load_where_nothing_can_be_zeroed),
        cmocka_unit_test(growing_under_load),
    };
    return RUN_ON_ENGINES(tests);
}
