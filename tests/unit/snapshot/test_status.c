// SPDX-License-Identifier: Apache-2.0
/* IMAGE_STATUS of the upper layers only: what they hold, what is absent there, and what a short layer covers. */
#include "fixture.h"

#include <string.h>

#define KIB UINT64_C(1024)
#define SIZE (1024 * KIB)

static struct image_extent extents[16];

static void expect(struct client *client, uint32_t layers, const struct image_extent *want, unsigned count)
{
    struct image_status status = {.extents = extents, .max = 16};
    assert_int_equal(client_status(client, 0, SIZE, layers, &status), 0);
    assert_int_equal(status.count, count);
    for (unsigned i = 0; i < count; i++) {
        assert_int_equal(extents[i].length, want[i].length);
        assert_int_equal(extents[i].state, want[i].state);
    }
}
#define EXPECT(client, layers, ...)                                                                                    \
    expect((client), (layers), (const struct image_extent[]){__VA_ARGS__},                                             \
           sizeof((const struct image_extent[]){__VA_ARGS__}) / sizeof(struct image_extent))

#define DATA IMAGE_EXTENT_ALLOCATED
#define ZERO (IMAGE_EXTENT_ALLOCATED | IMAGE_EXTENT_ZERO)
#define HOLE IMAGE_EXTENT_ZERO
#define ABSENT IMAGE_EXTENT_ABSENT

/* Write `length` bytes of data at `offset` of the chain whose top is layer `number`, and zeros at `zeroes`. */
static void fill(const struct kind *kind, unsigned number, uint64_t offset, uint64_t length, uint64_t zeroes)
{
    static uint8_t buffer[SIZE];
    struct client client;
    struct image *image = chain_open(kind, number, false);
    client_open(&client, image);
    memset(buffer, 0x11 * ((int)number + 1), sizeof(buffer));
    assert_int_equal(client_op(&client, IMAGE_WRITE, offset, buffer, length), 0);
    if (zeroes)
        assert_int_equal(client_op(&client, IMAGE_WRITE_ZEROES, zeroes, NULL, 128 * KIB), 0);
    client_close(&client);
    assert_int_equal(image_close(image, NULL), 0);
}

static void layers_by_depth(void **state)
{
    struct client client;
    (void)state;
    const struct kind kind = {.bottom = "qcow2", .cluster_size = 65536};
    for (unsigned i = 0; i < 3; i++)
        layer_create(&kind, i, SIZE);
    fill(&kind, 0, 0, 256 * KIB, 0);
    fill(&kind, 1, 128 * KIB, 256 * KIB, 0);
    fill(&kind, 2, 0, 64 * KIB, 512 * KIB);
    struct image *image = chain_open(&kind, 2, true);
    client_open(&client, image);
    EXPECT(&client, 1, {64 * KIB, DATA}, {448 * KIB, ABSENT}, {128 * KIB, ZERO}, {384 * KIB, ABSENT});
    EXPECT(&client, 2, {64 * KIB, DATA}, {64 * KIB, ABSENT}, {256 * KIB, DATA}, {128 * KIB, ABSENT}, {128 * KIB, ZERO},
           {384 * KIB, ABSENT});
    EXPECT(&client, 3, {384 * KIB, DATA}, {128 * KIB, ABSENT}, {128 * KIB, ZERO}, {384 * KIB, ABSENT});
    EXPECT(&client, 9, {384 * KIB, DATA}, {128 * KIB, ABSENT}, {128 * KIB, ZERO}, {384 * KIB, ABSENT});
    EXPECT(&client, 0, {384 * KIB, DATA}, {128 * KIB, HOLE}, {128 * KIB, ZERO}, {384 * KIB, HOLE});
    client_close(&client);
    assert_int_equal(image_close(image, NULL), 0);
}

static void subclusters_by_depth(void **state)
{
    struct client client;
    (void)state;
    const struct kind kind = {.bottom = "qcow2", .cluster_size = 131072, .extended_l2 = true};
    layer_create(&kind, 0, SIZE);
    layer_create(&kind, 1, SIZE);
    fill(&kind, 0, 0, 256 * KIB, 0);
    fill(&kind, 1, 4 * KIB, 8 * KIB, 256 * KIB);
    struct image *image = chain_open(&kind, 1, true);
    client_open(&client, image);
    EXPECT(&client, 1, {4 * KIB, ABSENT}, {8 * KIB, DATA}, {244 * KIB, ABSENT}, {128 * KIB, ZERO}, {640 * KIB, ABSENT});
    EXPECT(&client, 0, {256 * KIB, DATA}, {128 * KIB, ZERO}, {640 * KIB, HOLE});
    client_close(&client);
    assert_int_equal(image_close(image, NULL), 0);
}

/* A raw layer holds all of itself; beyond its end, what lies lower does not show. */
static void raw_and_short_layers(void **state)
{
    struct client client;
    (void)state;
    const struct kind kind = {.bottom = "raw", .cluster_size = 65536};
    layer_create(&kind, 0, SIZE);
    layer_create(&kind, 1, 512 * KIB);
    layer_create(&kind, 2, SIZE);
    fill(&kind, 0, 0, SIZE, 0);
    fill(&kind, 1, 64 * KIB, 64 * KIB, 0);
    fill(&kind, 2, 960 * KIB, 64 * KIB, 0);
    struct image *image = chain_open(&kind, 2, true);
    client_open(&client, image);
    EXPECT(&client, 1, {960 * KIB, ABSENT}, {64 * KIB, DATA});
    EXPECT(&client, 2, {64 * KIB, ABSENT}, {64 * KIB, DATA}, {384 * KIB, ABSENT}, {448 * KIB, HOLE}, {64 * KIB, DATA});
    EXPECT(&client, 3, {512 * KIB, DATA}, {448 * KIB, HOLE}, {64 * KIB, DATA});
    client_close(&client);
    assert_int_equal(image_close(image, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_by_depth),
        cmocka_unit_test(subclusters_by_depth),
        cmocka_unit_test(raw_and_short_layers),
    };
    return run_on_engines(tests, sizeof(tests) / sizeof(tests[0]));
}
