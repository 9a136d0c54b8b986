// SPDX-License-Identifier: Apache-2.0
// The in-flight region: a successor finds what its predecessor left, whatever the instruction at which it died.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/bytes.h"
#include "provisioner/blk/vhost_user_inflight.h"

static struct inflight_region region;
static uint16_t heads[64];
static unsigned count;

static int setup(void **state)
{
    (void)state;
    int fd = inflight_region_create(2, 16);
    assert_true(fd >= 0);
    assert_int_equal(inflight_region_map(&region, fd, inflight_region_size(2, 16), 0, 2, 16), 0);
    (void)close(fd);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    inflight_region_unmap(&region);
    return 0;
}

static void oldest_first(void **state)
{
    (void)state;
    struct inflight_queue q, next;
    assert_int_equal(inflight_queue_attach(&q, &region, 1, 16, 5, heads, &count), 0);
    assert_int_equal(count, 0);
    inflight_take(&q, 9);
    inflight_take(&q, 3);
    inflight_take(&q, 12);
    inflight_batch(&q, 3);
    inflight_clear(&q, 3);
    inflight_settle(&q, 6);
    assert_int_equal(inflight_queue_attach(&next, &region, 1, 16, 6, heads, &count), 0);
    assert_int_equal(count, 2);
    assert_int_equal(heads[0], 9);
    assert_int_equal(heads[1], 12);
    // Queue 0 is not concerned; new requests come after the old ones.
    struct inflight_queue other;
    assert_int_equal(inflight_queue_attach(&other, &region, 0, 16, 0, heads, &count), 0);
    assert_int_equal(count, 0);
    inflight_take(&next, 1);
    assert_int_equal(inflight_queue_attach(&next, &region, 1, 16, 6, heads, &count), 0);
    assert_int_equal(count, 3);
    assert_int_equal(heads[2], 1);
}

// Died with the batch of 4 and 7 pushed; `used` says whether the guest has been shown it.
static void dies_in_batch(uint16_t used, bool cleared, unsigned expected)
{
    struct inflight_queue q, next;
    assert_int_equal(inflight_queue_attach(&q, &region, 0, 16, 0, heads, &count), 0);
    inflight_take(&q, 4);
    inflight_take(&q, 7);
    inflight_take(&q, 8);
    inflight_batch(&q, 4);
    inflight_batch(&q, 7);
    if (cleared)
        inflight_clear(&q, 7);
    assert_int_equal(inflight_queue_attach(&next, &region, 0, 16, used, heads, &count), 0);
    assert_int_equal(count, expected);
    assert_int_equal(heads[expected - 1], 8);
}

static void died_before_publishing(void **state)
{
    (void)state;
    dies_in_batch(0, false, 3);
}

static void died_after_publishing(void **state)
{
    (void)state;
    dies_in_batch(2, false, 1);
}

static void died_while_clearing(void **state)
{
    (void)state;
    dies_in_batch(2, true, 1);
}

static void hostile_region(void **state)
{
    (void)state;
    struct inflight_queue q;
    memset(region.base, 0xff, inflight_region_size(2, 16));
    assert_int_equal(inflight_queue_attach(&q, &region, 0, 16, 0, heads, &count), -EINVAL); // version
    store_le16(region.base + 8, 1);
    assert_int_equal(inflight_queue_attach(&q, &region, 0, 16, 7, heads, &count), 0);
    assert_int_equal(count, 0); // marks other than 1 mean nothing
    memset(region.base, 1, inflight_region_size(2, 16));
    store_le16(region.base + 8, 1);
    assert_int_equal(inflight_queue_attach(&q, &region, 0, 16, 7, heads, &count), 0);
    assert_true(count <= 16);
    assert_int_equal(inflight_queue_attach(&q, &region, 2, 16, 0, heads, &count), -EINVAL);
    assert_int_equal(inflight_queue_attach(&q, &region, 0, 32, 0, heads, &count), -EINVAL);
}

static void refuses_bad_regions(void **state)
{
    (void)state;
    struct inflight_region bad = {0};
    uint64_t size = inflight_region_size(2, 16);
    int fd = inflight_region_create(2, 16);
    assert_int_equal(inflight_region_map(&bad, fd, size - 1, 0, 2, 16), -EINVAL);
    assert_int_equal(inflight_region_map(&bad, fd, size, 64, 2, 16), -EINVAL);
    assert_int_equal(inflight_region_map(&bad, fd, UINT64_MAX, 8, 2, 16), -EINVAL);
    assert_int_equal(inflight_region_map(&bad, fd, size, 0, 0, 16), -EINVAL);
    assert_int_equal(inflight_region_map(&bad, fd, size, 0, 2, 0), -EINVAL);
    assert_int_equal(inflight_region_map(&bad, fd, UINT64_MAX / 2, 0, 65535, 65535), -EINVAL);
    assert_int_equal(ftruncate(fd, 0), -1); // sealed
    (void)close(fd);
    int pipes[2];
    assert_int_equal(pipe(pipes), 0);
    assert_int_equal(inflight_region_map(&bad, pipes[0], size, 0, 2, 16), -EINVAL);
    (void)close(pipes[0]);
    (void)close(pipes[1]);
}

static void does_nothing_without_region(void **state)
{
    (void)state;
    struct inflight_queue q;
    const struct inflight_region none = {0};
    assert_int_equal(inflight_queue_attach(&q, &none, 0, 16, 0, heads, &count), 0);
    assert_int_equal(count, 0);
    inflight_take(&q, 1);
    inflight_batch(&q, 1);
    inflight_clear(&q, 1);
    inflight_settle(&q, 1);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(oldest_first),   T(died_before_publishing), T(died_after_publishing),       T(died_while_clearing),
        T(hostile_region), T(refuses_bad_regions),    T(does_nothing_without_region),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
