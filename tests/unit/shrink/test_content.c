// SPDX-License-Identifier: Apache-2.0
/* What a disk's first bytes say of the space that its content needs, also when they lie. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "common/cleanup.h"
#include "provisioner/blk/content.h"

static uint8_t head[CONTENT_HEAD];

static int blank(void **state)
{
    (void)state;
    memset(head, 0, sizeof(head));
    return 0;
}

static void content_is(const char *name, uint64_t end)
{
    struct content content;
    content_find(head, sizeof(head), &content);
    if (!name)
        assert_null(content.name);
    else
        assert_string_equal(content.name, name);
    assert_int_equal(content.end, end);
}

static void ext(uint64_t blocks, uint32_t log_block, bool wide)
{
    store_le16(head + 1024 + 56, 0xef53);
    store_le32(head + 1024 + 4, (uint32_t)blocks);
    store_le32(head + 1024 + 24, log_block);
    store_le32(head + 1024 + 96, wide ? 0x80 : 0);
    store_le32(head + 1024 + 336, (uint32_t)(blocks >> 32));
}

static void xfs(uint64_t blocks, uint32_t block)
{
    memcpy(head, "XFSB", 4);
    store_be32(head + 4, block);
    store_be64(head + 8, blocks);
}

static void mbr(unsigned entry, uint8_t type, uint32_t start, uint32_t sectors)
{
    uint8_t *p = head + 446 + (size_t)entry * 16;
    head[510] = 0x55;
    head[511] = 0xaa;
    p[4] = type;
    store_le32(p + 8, start);
    store_le32(p + 12, sectors);
}

static void gpt(uint32_t sector, uint64_t table, uint32_t count, uint32_t entry_size)
{
    memcpy(head + sector, "EFI PART", 8);
    store_le64(head + sector + 72, table);
    store_le32(head + sector + 80, count);
    store_le32(head + sector + 84, entry_size);
}

static void gpt_entry(uint32_t sector, unsigned entry, uint64_t last)
{
    uint8_t *p = head + 2 * (size_t)sector + (size_t)entry * 128;
    memset(p, 0x11, 16);
    store_le64(p + 40, last);
}

static void nothing_is_known_of_zeros(void **state)
{
    (void)state;
    content_is(NULL, 0);
}

static void ext4_needs_its_blocks(void **state)
{
    (void)state;
    ext(1000, 2, false);
    content_is("ext4", 1000 * 4096);
}

static void high_half_of_ext4s_count_needs_its_feature(void **state)
{
    (void)state;
    ext((UINT64_C(3) << 32) + 5, 2, false);
    content_is("ext4", 5 * 4096);
    ext((UINT64_C(3) << 32) + 5, 2, true);
    content_is("ext4", ((UINT64_C(3) << 32) + 5) * 4096);
}

static void absurd_ext4_needs_everything(void **state)
{
    (void)state;
    ext(1000, 7, false);
    content_is("ext4", UINT64_MAX);
    ext(UINT64_MAX, 2, true);
    content_is("ext4", UINT64_MAX);
}

static void xfs_needs_its_blocks(void **state)
{
    (void)state;
    xfs(77, 4096);
    content_is("xfs", 77 * 4096);
    xfs(77, 3000);
    content_is("xfs", UINT64_MAX);
    xfs(UINT64_MAX / 2, 4096);
    content_is("xfs", UINT64_MAX);
}

static void mbr_needs_its_last_partition(void **state)
{
    (void)state;
    mbr(0, 0x83, 2048, 4096);
    mbr(1, 0x83, 8192, 100);
    mbr(2, 0, 90000, 90000);
    content_is("mbr", (8192 + 100) * 512);
}

static void boot_sector_is_no_table(void **state)
{
    (void)state;
    mbr(0, 0x83, 2048, 4096);
    head[446] = 0x13;
    content_is(NULL, 0);
}

static void gpt_needs_its_last_partition(void **state)
{
    static const uint32_t sectors[] = {512, 4096};
    for (size_t i = 0; i < 2; i++) {
        blank(state);
        mbr(0, 0xee, 1, UINT32_MAX);
        gpt(sectors[i], 2, 128, 128);
        gpt_entry(sectors[i], 0, 9999);
        gpt_entry(sectors[i], 5, 4999);
        content_is("gpt", 10000 * (uint64_t)sectors[i]);
    }
}

static void gpt_whose_table_is_elsewhere_needs_everything(void **state)
{
    (void)state;
    gpt(512, 1 << 20, 128, 128);
    content_is("gpt", UINT64_MAX);
    gpt(512, 2, UINT32_MAX, UINT32_MAX);
    content_is("gpt", UINT64_MAX);
    gpt(512, UINT64_MAX, 4, 128);
    content_is("gpt", UINT64_MAX);
    gpt(512, 2, 4, 64);
    content_is("gpt", UINT64_MAX);
}

static void largest_need_counts(void **state)
{
    (void)state;
    ext(100, 0, false);
    mbr(0, 0x83, 2048, 4096);
    content_is("mbr", 6144 * 512);
    ext(100000, 0, false);
    content_is("ext4", 100000 * 1024);
}

static void short_disks_are_not_read_beyond(void **state)
{
    struct content content;
    (void)state;
    for (size_t length = 0; length < 20 * KIB; length += 511) {
        CLEANUP_FREE uint8_t *copy = malloc(length + 1);
        memset(copy, 0xff, length);
        if (length > 1024 + 60)
            store_le16(copy + 1024 + 56, 0xef53);
        content_find(copy, length, &content); /* the sanitizers watch */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(nothing_is_known_of_zeros, blank),
        cmocka_unit_test_setup(ext4_needs_its_blocks, blank),
        cmocka_unit_test_setup(high_half_of_ext4s_count_needs_its_feature, blank),
        cmocka_unit_test_setup(absurd_ext4_needs_everything, blank),
        cmocka_unit_test_setup(xfs_needs_its_blocks, blank),
        cmocka_unit_test_setup(mbr_needs_its_last_partition, blank),
        cmocka_unit_test_setup(boot_sector_is_no_table, blank),
        cmocka_unit_test_setup(gpt_needs_its_last_partition, blank),
        cmocka_unit_test_setup(gpt_whose_table_is_elsewhere_needs_everything, blank),
        cmocka_unit_test_setup(largest_need_counts, blank),
        cmocka_unit_test_setup(short_disks_are_not_read_beyond, blank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
