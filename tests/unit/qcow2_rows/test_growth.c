// SPDX-License-Identifier: Apache-2.0
/*
 * The file stays as large as what lives in it and a bound, however often space is given back, allocated again and flushed
 * (cloud-hypervisor #8597: freed refcount blocks were never used again, files doubled, and checks found nothing wrong).
 *
 * The bound (docs/testing.md): clusters that live, two reserved runs, what is freed and not yet released, L2 tables and
 * refcount blocks, and the space allocated ahead of the file's end. How much is freed and not released is a matter of when
 * the reaper's thread gets to run, so it is waited for here now and then.
 *
 * GROWTH_FLUSHES sets how many flushes there are, ten allocations each.
 */
#include <stdio.h>
#include <stdlib.h>

#include "backends/format/qcow2/reserve.h"
#include "common/checked.h"
#include "rows.h"

#define SMALL UINT64_C(4096)
#define SIZE (64 * MIB)
#define SPAN 10u /* clusters of each write */
#define AHEAD MIB
#define LAG 64u /* flushes after which the reaper is waited for */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FLUSHES 5000u
#else
#define FLUSHES 100000u
#endif

static unsigned flushes(void)
{
    const char *text = getenv("GROWTH_FLUSHES");
    return text ? (unsigned)strtoul(text, NULL, 10) : FLUSHES;
}

static uint64_t bound(const struct rig *rig, uint64_t live)
{
    uint64_t metadata = 16 + SIZE / SMALL / 512 + 2 * (SIZE / SMALL / 2048);
    return (live + 2 * rig->q->allocator->run + LAG * SPAN + metadata) * SMALL + AHEAD;
}

static void test_size_is_live_data_and_a_bound(void **state)
{
    struct rig *rig = *state;
    const unsigned groups = SIZE / SMALL / SPAN;
    const unsigned total = flushes();
    static bool lives[SIZE / SMALL / SPAN];
    uint64_t live = 0;
    uint64_t most = 0;
    unsigned seed = 8597;
    rig->cache_bytes = 64 * KIB;
    rig_create(rig, &(struct image_create_options){.size = SIZE, .cluster_size = SMALL});
    rig_open(rig);
    uint64_t limit = bound(rig, SPAN * 64);
    for (unsigned i = 0; i < total; i++) {
        unsigned group = (unsigned)rand_r(&seed) % groups;
        /* At most 64 groups live: one in, one out, somewhere else. */
        if (live == 64) {
            unsigned out = (unsigned)rand_r(&seed) % groups;
            while (!lives[out])
                out = (out + 1) % groups;
            rig_discard(rig, out * SPAN * SMALL, SPAN * SMALL);
            lives[out] = false;
            live--;
        }
        while (lives[group])
            group = (group + 1) % groups;
        rig_write(rig, group * SPAN * SMALL, SPAN * SMALL, (int)(group & 0x7f) | 1);
        lives[group] = true;
        live++;
        rig_flush(rig);
        if (i % LAG == 0) {
            rig_settle(rig);
            most = MAX(most, file_size(rig->path));
        }
    }
    const struct allocator *a = rig->q->allocator;
    print_message("%u flushes: at most %llu bytes, bound %llu, leaked %llu\n", total, (unsigned long long)most,
                  (unsigned long long)limit, (unsigned long long)a->leaked);
    assert_true(most <= limit);
    assert_int_equal(a->leaked, 0);
    assert_int_equal(a->underflows, 0);
    for (unsigned group = 0; group < groups; group++)
        if (lives[group])
            rig_expect(rig, group * SPAN * SMALL, SPAN * SMALL, (int)(group & 0x7f) | 1);
    rig_settle(rig);
    rig_close_clean(rig);
    assert_true(file_size(rig->path) <= limit);
    assert_true(file_space(rig->path) <= limit);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_size_is_live_data_and_a_bound, rig_setup_in_memory, rig_teardown),
    };
    return have_qemu_img() ? cmocka_run_group_tests(tests, NULL, NULL) : SKIP;
}
