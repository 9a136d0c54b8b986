// SPDX-License-Identifier: Apache-2.0
/* Bugs around the header, sizes and alignments. Each test's comment names the bug and who paid for it. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "rows.h"

#define FIRST UINT64_C(65536) /* bytes of the file that are compared */

static void header_of(const struct rig *rig, uint8_t *buffer)
{
    peek(rig->path, 0, buffer, FIRST);
}

/* Plant what we do not know: an extension, compatible bits. At the end of the extensions, which end with zeros. */
static void plant(const struct rig *rig, uint64_t cluster)
{
    static uint8_t header[FIRST];
    header_of(rig, header);
    uint64_t at = load_be32(header + 100);
    while (load_be32(header + at) != 0)
        at += 8 + align_up(load_be32(header + at + 4), 8);
    assert_true(at + 24 <= cluster);
    poke(rig->path, at, "\x12\x34\x56\x78\0\0\0\x0bhello there\0\0\0\0\0", 24);
    poke_be64(rig->path, 80, load_be64(header + 80) | UINT64_C(0xf0f0f0f0f0f0f0f0));
}

/* ---- what a rewritten header keeps --------------------------------------------------------------------------- */

/* cloud-hypervisor 5b99f9ce: the header written at a resize lost the compression type; unknown extensions likewise. */
static void test_resize_keeps_every_other_field(void **state)
{
    struct rig *rig = *state;
    static const char *const kinds[] = {
        "compression_type=zstd",
        "compression_type=zstd,extended_l2=on,cluster_size=16k",
        "lazy_refcounts=on,refcount_bits=64",
        "cluster_size=4k,refcount_bits=1",
        "cluster_size=2M,compression_type=zstd,lazy_refcounts=on",
    };
    static uint8_t before[FIRST];
    static uint8_t after[FIRST];
    for (unsigned i = 0; i < ARRAY_SIZE(kinds); i++) {
        (void)remove(rig->path);
        command_or_fail("qemu-img create -q -f qcow2 -o %s '%s' 1G", kinds[i], rig->path);
        command_or_fail("qemu-io -c 'write -P 1 0 1M' '%s'", rig->path);
        uint64_t cluster = UINT64_C(1) << (peek_be64(rig->path, 16) & 0xffffffff);
        plant(rig, cluster);
        header_of(rig, before);
        rig_open(rig);
        assert_int_equal(rig_resize(rig, UINT64_C(7) << 40), 0);
        rig_write(rig, UINT64_C(6) << 40, MIB, 2);
        rig_close_clean(rig);
        header_of(rig, after);
        assert_int_equal(load_be64(after + 24), UINT64_C(7) << 40);
        assert_true(load_be64(after + 40) != load_be64(before + 40)); /* the L1 table moved */
        memcpy(after + 24, before + 24, 8);
        memcpy(after + 36, before + 36, 24); /* L1 and refcount table */
        assert_memory_equal(before, after, MIN(cluster, FIRST));
        command_or_fail("qemu-io -r -c 'read -P 1 0 1M' -c 'read -P 2 6T 1M' '%s'", rig->path);
    }
}

/* cloud-hypervisor #6354: opening and closing dropped the lazy_refcounts bit. */
static void test_open_and_close_leave_the_header_alone(void **state)
{
    struct rig *rig = *state;
    static const char *const kinds[] = {"compat=1.1,lazy_refcounts=on", "compat=0.10", "extended_l2=on"};
    static uint8_t before[FIRST];
    static uint8_t after[FIRST];
    for (unsigned i = 0; i < ARRAY_SIZE(kinds); i++) {
        (void)remove(rig->path);
        command_or_fail("qemu-img create -q -f qcow2 -o %s '%s' 64M", kinds[i], rig->path);
        if (i != 1)
            plant(rig, FIRST);
        header_of(rig, before);
        for (unsigned round = 0; round < 3; round++) {
            rig_open(rig);
            if (round > 0) {
                rig_write(rig, round * MIB, MIB, 1);
                rig_discard(rig, 0, 64 * MIB);
                rig_flush(rig);
            }
            assert_int_equal(rig_close(rig), 0);
            header_of(rig, after);
            assert_memory_equal(before, after, sizeof(before));
        }
        assert_int_equal(qemu_check(rig->path), 0);
    }
}

/* ---- dirty and corrupt ---------------------------------------------------------------------------------------- */

static void make_dirty(struct rig *rig, const char *size)
{
    char text[4096];
    (void)remove(rig->path);
    command_or_fail("qemu-img create -q -f qcow2 -o lazy_refcounts=on '%s' %s", rig->path, size);
    (void)command(text, sizeof(text), "qemu-io -c 'write -P 7 1M 300k' -c flush -c abort '%s'", rig->path);
    assert_int_equal(peek_be64(rig->path, 72), QCOW2_INCOMPATIBLE_DIRTY);
}

/* cloud-hypervisor 29720f07: the rebuild of the counts was sized by the claimed size, not by the file. */
static void test_rebuild_is_sized_by_the_file(void **state)
{
    struct rig *rig = *state;
    make_dirty(rig, "1P");
    uint64_t size = file_size(rig->path);
    rig_open(rig);
    assert_int_equal(peek_be64(rig->path, 72), 0);
    assert_true(file_size(rig->path) <= size + 2 * CLUSTER);
    rig_expect(rig, MIB, 300 * KIB, 7);
    rig_close_clean(rig);
    assert_true(file_size(rig->path) <= size + 2 * CLUSTER);
}

struct watch {
    struct io_seam seam; /* first */
    unsigned unflushed;  /* writes since the last flush */
    unsigned early;      /* header writes while there were such */
    unsigned headers;
};

static int watch_after(struct io_seam *seam, const struct io_seam_event *event, int result)
{
    struct watch *watch = (struct watch *)seam;
    if (event->kind == SEAM_FLUSH)
        watch->unflushed = 0;
    if (event->kind == SEAM_WRITE && event->offset == 0) {
        watch->headers++;
        watch->early += watch->unflushed > 0;
    } else if (event->kind == SEAM_WRITE) {
        watch->unflushed++;
    }
    return result;
}

/* The dirty bit goes when the counts are durable, not before, and before anything else is done. */
static void test_dirty_bit_falls_after_the_counts_are_durable(void **state)
{
    struct rig *rig = *state;
    static struct watch watch = {.seam.after = watch_after};
    make_dirty(rig, "64M");
    rig->seam = &watch.seam;
    rig_open(rig);
    assert_int_equal(watch.headers, 1);
    assert_int_equal(watch.early, 0);
    assert_int_equal(watch.unflushed, 0);
    rig_close_clean(rig);
}

static void test_corrupt_image_is_for_reading_and_says_what_to_do(void **state)
{
    struct rig *rig = *state;
    struct error err = ERROR_INIT;
    rig_create(rig, &(struct image_create_options){.size = 64 * MIB});
    poke_be64(rig->path, 72, QCOW2_INCOMPATIBLE_CORRUPT);
    assert_int_equal(rig_try_open(rig, false, &err), -EUCLEAN);
    assert_string_equal(err.code, "corrupt-image");
    assert_non_null(strstr(err.message, "reading only"));
    assert_non_null(strstr(err.hint, "check"));
    assert_int_equal(rig_try_open(rig, true, NULL), 0);
    rig_expect(rig, 0, MIB, 0);
    assert_int_equal(rig_io(rig, IMAGE_WRITE, 0, 4096, 1), -EROFS);
    assert_int_equal(rig_close(rig), 0);
    assert_int_equal(peek_be64(rig->path, 72), QCOW2_INCOMPATIBLE_CORRUPT);
}

/* Counts that are too low say that data is free. Opening and closing alone must not cut it off or punch it. */
static void test_uncounted_tail_survives_open_and_close(void **state)
{
    struct rig *rig = *state;
    static const uint8_t zeros[64];
    rig_create(rig, &(struct image_create_options){.size = 64 * MIB});
    rig_open(rig);
    rig_write(rig, 0, 2 * MIB, 5);
    rig_close_clean(rig);
    uint64_t size = file_size(rig->path);
    uint64_t block = peek_be64(rig->path, peek_be64(rig->path, 48));
    poke(rig->path, block + 8 * 2, zeros, sizeof(zeros)); /* clusters 8 to 39 */
    rig_open(rig);
    assert_int_equal(rig_close(rig), 0);
    assert_int_equal(file_size(rig->path), size);
    command_or_fail("qemu-img check -q -r all '%s' >/dev/null 2>&1", rig->path);
    command_or_fail("qemu-io -r -c 'read -P 5 0 2M' '%s'", rig->path);
}

/* ---- odd sizes ------------------------------------------------------------------------------------------------ */

/* cloud-hypervisor #8012, #8051: direct I/O got -EINVAL at a tail that is no whole block. Here the image and the raw file
 * below end at odd sectors; blocks of 512 and 4096 bytes below: unit/io, which has loop devices of both. */
static void test_tails_that_are_no_whole_block(void **state)
{
    struct rig *rig = *state;
    static const uint64_t sizes[] = {MIB + 512, MIB + 4096 + 1024, 65536 * 3 - 512, 512, 3 * 512};
    static const uint32_t clusters[] = {512, 4096, 65536};
    for (unsigned i = 0; i < ARRAY_SIZE(sizes) * ARRAY_SIZE(clusters) * 2; i++) {
        uint64_t size = sizes[i / 6];
        rig->overlay = i & 1;
        rig_create(rig, &(struct image_create_options){.size = size, .cluster_size = clusters[i / 2 % 3]});
        rig_open(rig);
        uint64_t tail = size - 512;
        rig_expect(rig, tail, 512, rig->overlay ? 0xbb : 0);
        rig_write(rig, tail, 512, 1);
        rig_expect(rig, tail, 512, 1);
        rig_write(rig, size - 5, 5, 2);
        rig_expect(rig, size - 5, 5, 2);
        rig_expect(rig, tail, 507, 1);
        assert_int_equal(rig_io(rig, IMAGE_WRITE_ZEROES, tail, 512, 0), 0);
        rig_expect(rig, tail, 512, 0);
        rig_discard(rig, tail, 512);
        assert_int_equal(rig_io(rig, IMAGE_WRITE, tail, 1024, 1), -EINVAL);
        rig_write(rig, 0, size, 3);
        rig_flush(rig);
        rig_close_clean(rig);
        command_or_fail("qemu-io -r -c 'read -P 3 0 %llu' '%s'", (unsigned long long)size, rig->path);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_resize_keeps_every_other_field, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_open_and_close_leave_the_header_alone, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_rebuild_is_sized_by_the_file, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_dirty_bit_falls_after_the_counts_are_durable, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_corrupt_image_is_for_reading_and_says_what_to_do, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_uncounted_tail_survives_open_and_close, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_tails_that_are_no_whole_block, rig_setup, rig_teardown),
    };
    return have_qemu_img() ? cmocka_run_group_tests(tests, NULL, NULL) : SKIP;
}
