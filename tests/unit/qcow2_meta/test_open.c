// SPDX-License-Identifier: Apache-2.0
/* Opening good, odd and hostile images; growing them; dirty ones. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
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

static void read_header_cluster(uint8_t *buffer, size_t length)
{
    struct io_file *file = file_open(path);
    assert_int_equal(io_file_read(file, buffer, length, 0), 0);
    (void)io_file_close(file);
}

static void expect_refused(bool read_only, int errnum, const char *code)
{
    struct error err = ERROR_INIT;
    int r = 0;
    struct image *image = open_image(path, read_only, &err, &r);
    assert_null(image);
    assert_int_equal(r, -errnum);
    assert_string_equal(err.code, code);
}

static void expect_opens(bool read_only)
{
    struct error err = ERROR_INIT;
    struct image *image = open_image(path, read_only, &err, NULL);
    if (!image)
        fail_msg("%s", err.message);
    assert_int_equal(image_close(image, NULL), 0);
}

static void make(void)
{
    struct image_create_options options = {.size = GIB};
    assert_int_equal(create(path, &options, NULL), 0);
}

/* ---- hostile tables ------------------------------------------------------------------------------------------ */

static void test_hostile_l1(void **state)
{
    (void)state;
    static const uint64_t bad[] = {
        1,                          /* reserved */
        UINT64_C(1) << 62,          /* reserved */
        UINT64_C(1) << 63,          /* a flag for no table */
        512,                        /* not aligned */
        0x10000 | 0x200,            /* not aligned */
        UINT64_C(0x40000000000000), /* far behind the end */
        0x40000,                    /* just behind the end */
        0x10000,                    /* the refcount table */
        0x30000,                    /* the L1 table itself */
        QCOW2_COPIED | 0x80,
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        make();
        poke_be64(path, 0x30000 + 8, bad[i]);
        expect_refused(false, EUCLEAN, "corrupt-image");
        expect_refused(true, EUCLEAN, "corrupt-image");
    }
}

static void test_hostile_refcount_table(void **state)
{
    (void)state;
    static const uint64_t bad[] = {1, 512, 0x20001, 0x40000, UINT64_MAX, 0x10000, 0x30000, UINT64_C(1) << 63};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        make();
        poke_be64(path, 0x10000 + 8, bad[i]);
        expect_refused(false, EUCLEAN, "corrupt-image");
        expect_opens(true);
        struct image *image = NULL;
        struct image_layer layer = {.format = "qcow2", .file = file_open(path)};
        struct image_options verify = {.verify_only = true};
        assert_int_equal(image_open(&layer, 1, &verify, &image, NULL), -EUCLEAN);
        (void)io_file_close(layer.file);
    }
}

static void test_hostile_snapshots(void **state)
{
    (void)state;
    char text[1024];
    make();
    assert_int_equal(command_output(text, sizeof(text), "qemu-img snapshot -c one '%s' 2>&1", path), 0);
    expect_opens(false);
    assert_int_equal(qemu_check(path), 0);
    uint64_t table = peek_be64(path, 64);
    uint64_t l1 = peek_be64(path, table);
    poke_be64(path, table, l1 + 512);
    expect_refused(true, EUCLEAN, "corrupt-image");
    poke_be64(path, table, UINT64_C(1) << 50);
    expect_refused(true, EUCLEAN, "corrupt-image");
    poke_be64(path, table, l1);
    poke(path, table + 36, "\xff\xff\xff\xff", 4); /* extra data */
    expect_refused(true, EUCLEAN, "corrupt-image");
    poke(path, table + 36, "\0\0\0\x18", 4);
    poke(path, 60, "\0\0\xff\xff", 4); /* many more of them than the file holds */
    expect_refused(false, EUCLEAN, "corrupt-image");
}

/* ---- what the header asks for -------------------------------------------------------------------------------- */

static void test_corrupt_bit(void **state)
{
    (void)state;
    make();
    poke_be64(path, 72, QCOW2_INCOMPATIBLE_CORRUPT);
    expect_refused(false, EUCLEAN, "corrupt-image");
    expect_opens(true);
}

static void test_backing_is_not_followed(void **state)
{
    (void)state;
    struct image_create_options options = {.size = GIB, .backing = "/etc/passwd", .backing_format = "raw"};
    assert_int_equal(create(path, &options, NULL), 0);
    expect_refused(false, EINVAL, "backing-not-given");
    expect_refused(true, EINVAL, "backing-not-given");
}

static void test_below_without_backing(void **state)
{
    (void)state;
    char other[256];
    scratch_make(other, sizeof(other));
    make();
    struct image *image = NULL;
    struct image_layer layers[2] = {{.format = "qcow2", .file = file_open(path)},
                                    {.format = "raw", .file = file_open(other)}};
    struct image_options options = {0};
    assert_int_equal(image_open(layers, 2, &options, &image, NULL), -EINVAL);
    for (unsigned i = 0; i < 2; i++)
        (void)io_file_close(layers[i].file);
    scratch_remove(other);
}

/* Unknown extensions, header bytes and compatible bits stay; autoclear bits go at the first writable open. */
static void test_unknown_parts_stay(void **state)
{
    (void)state;
    static uint8_t before[65536];
    static uint8_t after[65536];
    make();
    poke(path, 504, "\x12\x34\x56\x78\0\0\0\x05hello\0\0\0", 16);
    poke_be64(path, 80, UINT64_C(0xf0f0f0f0f0f0f0f0));
    poke_be64(path, 88, UINT64_C(0x8000000000000002));
    read_header_cluster(before, sizeof(before));
    expect_opens(true);
    read_header_cluster(after, sizeof(after));
    assert_memory_equal(before, after, sizeof(before));
    expect_opens(false);
    read_header_cluster(after, sizeof(after));
    assert_int_equal(load_be64(after + 88), 0);
    store_be64(before + 88, 0);
    assert_memory_equal(before, after, sizeof(before));
    expect_opens(false);
    read_header_cluster(after, sizeof(after));
    assert_memory_equal(before, after, sizeof(before));
    assert_int_equal(qemu_check(path), 0);
}

/* A longer header than we know, with bytes in it. */
static void test_longer_header(void **state)
{
    (void)state;
    static uint8_t cluster[65536];
    static uint8_t after[65536];
    make();
    read_header_cluster(cluster, sizeof(cluster));
    memmove(cluster + 128, cluster + 112, 1024);
    memset(cluster + 112, 0xee, 16);
    store_be32(cluster + 100, 128);
    poke(path, 0, cluster, sizeof(cluster));
    struct image *image = open_image(path, false, NULL, NULL);
    assert_non_null(image);
    assert_int_equal(image_resize(image, 2 * GIB, NULL), 0);
    assert_int_equal(image_close(image, NULL), 0);
    read_header_cluster(after, sizeof(after));
    assert_memory_equal(cluster + 100, after + 100, sizeof(after) - 100);
}

/* ---- growing ------------------------------------------------------------------------------------------------- */

static void grow_and_judge(const struct image_create_options *o, uint64_t size)
{
    static uint8_t before[2 << 20];
    static uint8_t after[2 << 20];
    char text[4096];
    size_t cluster = o->cluster_size ? o->cluster_size : 65536;
    struct error err = ERROR_INIT;
    assert_int_equal(create(path, o, NULL), 0);
    read_header_cluster(before, cluster);
    struct image *image = open_image(path, false, &err, NULL);
    if (!image)
        fail_msg("%s", err.message);
    if (image_resize(image, size, &err) < 0)
        fail_msg("%s", err.message);
    assert_int_equal(qemu_check(path) & ~3, 0);
    assert_int_equal(image_qcow2(image)->l1_entries, image_qcow2(image)->header.l1_size);
    assert_int_equal(image_close(image, NULL), 0);
    assert_int_equal(qemu_check(path), 0);
    read_header_cluster(after, cluster);
    assert_int_equal(load_be64(after + 24), size);
    /* All else but the places of the tables is as before. */
    memset(before + 24, 0, 40);
    memset(after + 24, 0, 40);
    assert_memory_equal(before, after, cluster);
    assert_int_equal(command_output(text, sizeof(text), "qemu-img info '%s'", path), 0);
}

static void test_grow(void **state)
{
    (void)state;
    grow_and_judge(&(struct image_create_options){.size = 64 * MIB}, 65 * MIB);
    grow_and_judge(&(struct image_create_options){.size = 64 * MIB}, 100 * TIB);
    grow_and_judge(&(struct image_create_options){.size = 0}, 512);
    grow_and_judge(&(struct image_create_options){.size = MIB, .version = 2}, TIB);
    grow_and_judge(&(struct image_create_options){.size = MIB, .cluster_size = 512}, 8 * GIB);
    grow_and_judge(&(struct image_create_options){.size = MIB, .cluster_size = 512, .refcount_bits = 64}, 128 * GIB);
    grow_and_judge(&(struct image_create_options){.size = MIB, .cluster_size = 512, .refcount_bits = 1}, 128 * GIB);
    grow_and_judge(&(struct image_create_options){.size = MIB, .cluster_size = 2 << 20}, 512 * TIB);
    grow_and_judge(&(struct image_create_options){.size = MIB, .extended_l2 = true, .compression = "zstd"}, 10 * TIB);
}

static void test_grow_refused(void **state)
{
    (void)state;
    char text[1024];
    struct error err = ERROR_INIT;
    struct image_create_options options = {.size = MIB, .cluster_size = 512, .version = 2};
    assert_int_equal(create(path, &options, NULL), 0);
    struct image *image = open_image(path, false, NULL, NULL);
    assert_int_equal(image_resize(image, 128 * GIB + 512, &err), -EFBIG);
    assert_int_equal(image_resize(image, MIB + 1, &err), -EINVAL);
    assert_int_equal(image_resize(image, 512, &err), -EINVAL);
    assert_string_equal(err.code, "shrink-refused");
    assert_int_equal(image_close(image, NULL), 0);
    assert_int_equal(qemu_check(path), 0);
    assert_int_equal(command_output(text, sizeof(text), "qemu-img snapshot -c one '%s' 2>&1", path), 0);
    image = open_image(path, false, NULL, NULL);
    assert_int_equal(image_resize(image, 2 * MIB, &err), -EOPNOTSUPP);
    assert_int_equal(image_close(image, NULL), 0);
}

/* ---- dirty images -------------------------------------------------------------------------------------------- */

static void judge_dirty(const char *create_options, const char *writes)
{
    char text[4096];
    assert_int_equal(command_output(text, sizeof(text),
                                    "qemu-img create -q -f qcow2 -o lazy_refcounts=on,%s '%s' 64M 2>&1", create_options,
                                    path),
                     0);
    (void)command_output(text, sizeof(text), "qemu-io %s -c flush -c abort '%s' 2>&1", writes, path);
    assert_int_equal(peek_be64(path, 72) & QCOW2_INCOMPATIBLE_DIRTY, QCOW2_INCOMPATIBLE_DIRTY);
    expect_opens(true);
    assert_int_equal(peek_be64(path, 72) & QCOW2_INCOMPATIBLE_DIRTY, QCOW2_INCOMPATIBLE_DIRTY);
    expect_opens(false);
    assert_int_equal(peek_be64(path, 72) & QCOW2_INCOMPATIBLE_DIRTY, 0);
    assert_int_equal(qemu_check(path), 0);
    assert_int_equal(peek_be64(path, 80), QCOW2_COMPATIBLE_LAZY_REFCOUNTS);
    if (command_output(text, sizeof(text), "qemu-io -r -c 'read -P 7 1M 300k' -c 'read -P 9 40M 64k' '%s' 2>&1",
                       path) ||
        strstr(text, "failed"))
        fail_msg("%s", text);
}

static void test_dirty(void **state)
{
    (void)state;
    const char *writes = "-c 'write -P 7 1M 300k' -c 'write -P 9 40M 64k' -c 'write -P 1 30M 5M' -c 'discard 30M 5M'";
    judge_dirty("cluster_size=64k", writes);
    judge_dirty("cluster_size=512", writes);
    judge_dirty("cluster_size=4k,refcount_bits=1", writes);
    judge_dirty("cluster_size=16k,extended_l2=on,refcount_bits=64", writes);
    judge_dirty("cluster_size=2M", writes);
}

static void test_dirty_beyond_help(void **state)
{
    (void)state;
    char text[1024];
    assert_int_equal(command_output(text, sizeof(text), "qemu-img create -q -f qcow2 '%s' 64M 2>&1", path), 0);
    (void)command_output(text, sizeof(text), "qemu-io -c 'write 0 64k' '%s' 2>&1", path);
    uint64_t l2 = peek_be64(path, peek_be64(path, 40)) & QCOW2_OFFSET_MASK;
    poke_be64(path, l2 + 8, UINT64_C(1) << 45);
    poke_be64(path, 72, QCOW2_INCOMPATIBLE_DIRTY);
    expect_refused(false, EUCLEAN, "needs-repair");
    expect_opens(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_hostile_l1, setup, teardown),
        cmocka_unit_test_setup_teardown(test_hostile_refcount_table, setup, teardown),
        cmocka_unit_test_setup_teardown(test_hostile_snapshots, setup, teardown),
        cmocka_unit_test_setup_teardown(test_corrupt_bit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_backing_is_not_followed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_below_without_backing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unknown_parts_stay, setup, teardown),
        cmocka_unit_test_setup_teardown(test_longer_header, setup, teardown),
        cmocka_unit_test_setup_teardown(test_grow, setup, teardown),
        cmocka_unit_test_setup_teardown(test_grow_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_dirty, setup, teardown),
        cmocka_unit_test_setup_teardown(test_dirty_beyond_help, setup, teardown),
    };
    return have_qemu_img() ? cmocka_run_group_tests(tests, NULL, NULL) : SKIP;
}
