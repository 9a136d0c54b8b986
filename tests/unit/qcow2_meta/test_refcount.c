// SPDX-License-Identifier: Apache-2.0
/* Reference counts: entries of every width, bounds, searching, a table that grows. */
#include <errno.h>
#include <string.h>

#include "common/checked.h"
#include "helpers.h"

static char path[256];

static int setup(void **state)
{
    (void)state;
    scratch_make(path, sizeof(path));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    scratch_remove(path);
    return 0;
}

static void test_entries(void **state)
{
    (void)state;
    for (unsigned order = 0; order <= 6; order++) {
        uint8_t block[512] = {0};
        uint64_t entries = (512 * 8) >> order;
        uint64_t mask = order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << order)) - 1;
        for (uint64_t i = 0; i < entries; i++)
            refcount_entry_set(block, order, i, (i * UINT64_C(0x9e3779b97f4a7c15)) & mask);
        for (uint64_t i = 0; i < entries; i++)
            assert_int_equal(refcount_entry_get(block, order, i), (i * UINT64_C(0x9e3779b97f4a7c15)) & mask);
        for (uint64_t i = 0; i < entries; i++)
            refcount_entry_set(block, order, i, i % 2 ? mask : 0);
        for (uint64_t i = 0; i < entries; i++)
            assert_int_equal(refcount_entry_get(block, order, i), i % 2 ? mask : 0);
    }
    /* The specification's order within a byte: the first entry has the lowest bits. */
    uint8_t byte = 0;
    refcount_entry_set(&byte, 1, 0, 1);
    refcount_entry_set(&byte, 1, 3, 2);
    assert_int_equal(byte, 0x81);
}

static struct image *start(uint32_t cluster, uint32_t bits, struct refcounts **ret_refcounts)
{
    struct image_create_options options = {.size = 64 * MIB, .cluster_size = cluster, .refcount_bits = bits};
    assert_int_equal(create(path, &options, NULL), 0);
    struct image *image = open_image(path, false, NULL, NULL);
    assert_non_null(image);
    *ret_refcounts = image_qcow2(image)->refcounts;
    return image;
}

static void test_bounds(void **state)
{
    (void)state;
    for (uint32_t bits = 1; bits <= 64; bits *= 2) {
        struct refcounts *rc = NULL;
        struct image *image = start(4096, bits, &rc);
        uint64_t changed = 0;
        uint64_t value = 0;
        uint64_t max = bits == 64 ? UINT64_MAX : (UINT64_C(1) << bits) - 1;
        assert_int_equal(rc->max, max);
        assert_int_equal(refcounts_set(rc, 20, max), 0);
        assert_int_equal(refcounts_get(rc, 20, &value), 0);
        assert_int_equal(value, max);
        /* 18 and 19 go up, 20 is full. */
        assert_int_equal(refcounts_adjust(rc, 18, 5, 1, &changed), -ERANGE);
        assert_int_equal(changed, 2);
        assert_int_equal(refcounts_adjust(rc, 18, 2, -1, &changed), 0);
        assert_int_equal(refcounts_adjust(rc, 18, 1, -1, &changed), -ERANGE);
        assert_int_equal(refcounts_set(rc, 20, 0), 0);
        if (bits < 64)
            assert_int_equal(refcounts_set(rc, 20, max + 1), -ERANGE);
        assert_int_equal(refcounts_adjust(rc, UINT64_C(1) << 40, 1, 1, &changed), -ENOENT);
        assert_int_equal(image_close(image, NULL), 0);
        assert_int_equal(qemu_check(path), 0);
    }
}

static void test_find(void **state)
{
    (void)state;
    struct refcounts *rc = NULL;
    struct image *image = start(512, 16, &rc);
    uint64_t cluster = 0;
    uint64_t count = 0;
    bool missing = false;
    uint64_t end = 0;
    assert_int_equal(refcounts_end(rc, 1000, &end), 0);
    assert_int_equal(refcounts_find_free(rc, 0, 5, &cluster, &count, &missing), 0);
    assert_int_equal(cluster, end);
    assert_int_equal(count, 5);
    assert_false(missing);
    assert_int_equal(refcounts_set(rc, end + 3, 1), 0);
    assert_int_equal(refcounts_find_free(rc, 0, 5, &cluster, &count, &missing), 0);
    assert_int_equal(count, 3);
    assert_int_equal(refcounts_find_free(rc, end + 3, UINT64_MAX, &cluster, &count, &missing), 0);
    assert_int_equal(cluster, end + 4);
    assert_int_equal(cluster + count, 256);
    assert_int_equal(refcounts_find_free(rc, 256, 5, &cluster, &count, &missing), 0);
    assert_int_equal(cluster, 256);
    assert_true(missing);
    assert_int_equal(count, UINT64_MAX);
    /* The end of the format: 8 MiB of table. */
    assert_int_equal(refcounts_find_free(rc, (8 * MIB / 8) * 256, 5, &cluster, &count, &missing), -ENOSPC);
    assert_int_equal(refcounts_set(rc, end + 3, 0), 0);
    assert_int_equal(image_close(image, NULL), 0);
    assert_int_equal(qemu_check(path), 0);
}

/* The smallest table has 64 entries of 64 counts: it has to grow, more than once. */
static void test_table_grows(void **state)
{
    (void)state;
    struct refcounts *rc = NULL;
    struct image *image = start(512, 64, &rc);
    struct qcow2 *q = image_qcow2(image);
    uint64_t entries = rc->table_entries;
    unsigned grown = 0;
    uint64_t offset = 0;
    assert_int_equal(entries, 64);
    while (grown < 3) {
        assert_int_equal(allocator_take_blocking(q->allocator, 500, &offset, NULL), 0);
        if (rc->table_entries == entries)
            continue;
        assert_true(rc->table_entries >= entries + entries / 2);
        entries = rc->table_entries;
        grown++;
        assert_false(rc->header_dirty);
        assert_int_equal(peek_be64(path, 48), q->header.refcount_table_offset);
        assert_int_equal(qemu_check(path), 3); /* the taken clusters are leaks to it, and nothing is wrong */
        allocator_free(q->allocator, offset, 500);
    }
    allocator_commit_begin(q->allocator);
    allocator_commit_end(q->allocator, 0);
    assert_int_equal(image_close(image, NULL), 0);
    assert_int_equal(qemu_check(path) & ~3, 0);
}

/* A crash at any moment: what is in the file while the image is open must never have errors. */
static void test_without_close(void **state)
{
    (void)state;
    struct refcounts *rc = NULL;
    struct image *image = start(512, 64, &rc);
    uint64_t offset = 0;
    for (unsigned i = 0; i < 40; i++) {
        assert_int_equal(allocator_take_blocking(image_qcow2(image)->allocator, 300, &offset, NULL), 0);
        assert_int_equal(qemu_check(path) & ~3, 0);
    }
    assert_int_equal(image_close(image, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_entries),
        cmocka_unit_test_setup_teardown(test_bounds, setup, teardown),
        cmocka_unit_test_setup_teardown(test_find, setup, teardown),
        cmocka_unit_test_setup_teardown(test_table_grows, setup, teardown),
        cmocka_unit_test_setup_teardown(test_without_close, setup, teardown),
    };
    return have_qemu_img() ? cmocka_run_group_tests(tests, NULL, NULL) : SKIP;
}
