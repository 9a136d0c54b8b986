// SPDX-License-Identifier: Apache-2.0
/* What changed between the layers of random histories: never less, and not more than what was touched. */
#include "history.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/format/changed.h"
#include "common/checked.h"
#include "provisioner/blk/changed.h"

#define PAGE 3u

/* Marks of each byte by all pages: 0 = not told, 1 = data, 2 = zero. */
static void collect(struct image *image, uint32_t layers, uint64_t size, uint8_t *marks)
{
    struct changed_range ranges[PAGE];
    struct changed_page page = {.ranges = ranges, .max = PAGE};
    uint64_t offset = 0, end = 0;
    memset(marks, 0, HISTORY_SIZE);
    do {
        assert_int_equal(changed_list(image, layers, offset, NULL, &page, NULL), 0);
        assert_true(page.count <= PAGE && page.next <= size && (page.next > offset || page.next == size));
        for (size_t i = 0; i < page.count; i++) {
            assert_true(ranges[i].length > 0 && ranges[i].offset >= MAX(offset, end));
            end = ranges[i].offset + ranges[i].length;
            assert_true(end <= page.next);
            memset(marks + ranges[i].offset, ranges[i].zero ? 2 : 1, ranges[i].length);
        }
        offset = page.next;
    } while (offset < size);
}

static bool was_touched(const struct history *h, unsigned base, unsigned top, uint64_t offset)
{
    for (unsigned i = base + 1; i <= top; i++)
        if (h->touched[i][offset / HISTORY_GRANULE])
            return true;
    return false;
}

/* The changes from the end of layer `base` to that of layer `top`. */
static void compare(const struct history *h, unsigned base, unsigned top, const uint8_t *marks)
{
    const uint8_t *before = h->content[base], *after = h->content[top];
    for (uint64_t i = 0; i < HISTORY_SIZE; i++) {
        bool grown = i >= h->size[base] && i < h->size[top];
        if ((before[i] != after[i] || grown) && !marks[i])
            fail_msg("%s: byte %ju changed from %u to %u, and was not told", h->kind->name, (uintmax_t)i, base, top);
        if (marks[i] == 2 && after[i] != 0)
            fail_msg("%s: byte %ju is not zero", h->kind->name, (uintmax_t)i);
        if (marks[i] && !grown && !was_touched(h, base, top, i))
            fail_msg("%s: byte %ju was told, and not touched from %u to %u", h->kind->name, (uintmax_t)i, base, top);
    }
}

static void histories(void **state)
{
    static uint8_t marks[HISTORY_SIZE];
    unsigned seed = history_seed();
    (void)state;
    for (unsigned i = 0; i < kinds_count; i++) {
        struct history *h = history_create(&kinds[i], seed + i);
        for (unsigned top = 1; top < HISTORY_LAYERS; top++) {
            struct image *image = chain_open(h->kind, top, true);
            for (unsigned base = 0; base < top; base++) {
                collect(image, top - base, h->size[top], marks);
                compare(h, base, top, marks);
            }
            collect(image, 0, h->size[top], marks);
            for (uint64_t at = 0; at < HISTORY_SIZE; at++)
                assert_true(h->content[top][at] == 0 || marks[at] == 1);
            assert_int_equal(image_close(image, NULL), 0);
        }
        h = history_destroy(h);
    }
}

static void arguments(void **state)
{
    struct changed_range range;
    struct changed_page page = {.ranges = &range, .max = 1};
    const uint64_t size = UINT64_C(1) << 20;
    (void)state;
    layer_create(&kinds[2], 0, size);
    layer_create(&kinds[2], 1, size);
    struct image *image = chain_open(&kinds[2], 1, true);
    assert_int_equal(changed_list(image, 3, 0, NULL, &page, NULL), -EINVAL);
    assert_int_equal(changed_list(image, 1, size + 1, NULL, &page, NULL), -EINVAL);
    assert_int_equal(changed_list(image, 1, size, NULL, &page, NULL), 0);
    assert_int_equal(page.count, 0);
    assert_int_equal(page.next, size);
    assert_int_equal(changed_list(image, 2, 0, NULL, &page, NULL), 0);
    assert_int_equal(page.next, size);
    assert_int_equal(image_close(image, NULL), 0);
}

/* A moment stays where it is when a snapshot is taken. */
static void point_under_snapshots(void **state)
{
    static uint8_t data[65536];
    const uint64_t size = UINT64_C(1) << 20;
    struct changed_point start, point;
    struct client client;
    uint32_t layers = 0;
    struct error err = ERROR_INIT;
    (void)state;
    for (unsigned i = 0; i < 3; i++)
        layer_create(&kinds[2], i, size);
    struct image *image = chain_open(&kinds[2], 1, false);
    client_open(&client, image);
    memset(data, 0x5a, sizeof(data));
    assert_int_equal(changed_point(image, 0, &start, NULL), 0);
    assert_int_equal(changed_point(image, 1, &point, NULL), 0);
    assert_int_equal(changed_point(image, 3, &point, NULL), -EINVAL);
    assert_int_equal(client_op(&client, IMAGE_WRITE, 0, data, sizeof(data)), 0);
    assert_int_equal(changed_depth(image, &point, &layers), 0);
    assert_int_equal(layers, 1);
    client_close(&client); /* our loop would not run meanwhile */
    if (chain_snapshot(&kinds[2], image, 2, &err) < 0)
        fail_msg("%s", err.message);
    assert_int_equal(changed_depth(image, &point, &layers), 0);
    assert_int_equal(layers, 2);
    assert_int_equal(changed_depth(image, &start, &layers), 0);
    assert_int_equal(layers, 0);
    point.serial += 1000;
    assert_int_equal(changed_depth(image, &point, &layers), -ESTALE);
    assert_int_equal(image_close(image, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(histories),
        cmocka_unit_test(arguments),
        cmocka_unit_test(point_under_snapshots),
    };
    return run_on_engines(tests, sizeof(tests) / sizeof(tests[0]));
}
