// SPDX-License-Identifier: Apache-2.0
/*
 * Hostile images whose entries point at metadata: whatever the guest asks for, the metadata stays as it is, the image takes
 * no more writes, its corrupt bit is set, and it can still be read, here and by qemu.
 */
#include <errno.h>
#include <string.h>

#include "backends/format/qcow2/allocator.h"
#include "backends/format/qcow2/guard.h"
#include "common/bytes.h"
#include "common/checked.h"
#include "rows.h"

enum target { AT_HEADER, AT_REFTABLE, AT_REFBLOCK, AT_L1, AT_L2, AT_SNAPSHOTS, AT_SNAPSHOT_L1, AT_BITMAPS, TARGETS };
static const char *const names[TARGETS] = {"header", "refcount table", "refcount block", "L1",
                                           "L2",     "snapshot table", "snapshot's L1",  "bitmap directory"};

/* Two tables' worth of data, a snapshot, a bitmap; then the first table is the image's own again. */
static void make(struct rig *rig)
{
    command_or_fail("qemu-img create -q -f qcow2 '%s' 1G", rig->path);
    command_or_fail("qemu-io -c 'write -P 1 0 256k' -c 'write -P 2 600M 64k' '%s'", rig->path);
    command_or_fail("qemu-img snapshot -c one '%s'", rig->path);
    command_or_fail("qemu-img bitmap --add '%s' b0", rig->path);
    command_or_fail("qemu-io -c 'write -P 3 0 256k' -c 'write -P 4 600M 64k' '%s'", rig->path);
    assert_int_equal(qemu_check(rig->path), 0);
}

static uint64_t bitmap_directory(const char *path)
{
    static uint8_t cluster[65536];
    struct header h = {0};
    size_t length = 0;
    peek(path, 0, cluster, sizeof(cluster));
    assert_int_equal(header_parse(cluster, sizeof(cluster), &h, NULL), 0);
    const uint8_t *extension = header_extension(&h, QCOW2_EXTENSION_BITMAPS, &length);
    assert_non_null(extension);
    uint64_t offset = load_be64(extension + 16);
    header_release(&h);
    return offset;
}

static uint64_t place_of(const char *path, enum target target)
{
    switch (target) {
    case AT_HEADER:
        return 0;
    case AT_REFTABLE:
        return peek_be64(path, 48);
    case AT_REFBLOCK:
        return peek_be64(path, peek_be64(path, 48));
    case AT_L1:
        return peek_be64(path, 40);
    case AT_L2: /* the second table, which no one loads for the first entries */
        return peek_be64(path, peek_be64(path, 40) + 8) & QCOW2_OFFSET_MASK;
    case AT_SNAPSHOTS:
        return peek_be64(path, 64);
    case AT_SNAPSHOT_L1:
        return peek_be64(path, peek_be64(path, 64));
    default:
        return bitmap_directory(path);
    }
}

static void judge(struct rig *rig, uint64_t place, const uint8_t *before, const char *name)
{
    static uint8_t after[CLUSTER];
    char text[4096];
    struct error err = ERROR_INIT;
    peek(rig->path, place, after, sizeof(after));
    if (place == 0) {
        assert_true(load_be64(after + 72) & QCOW2_INCOMPATIBLE_CORRUPT);
        memcpy(after + 72, before + 72, 8);
        memcpy(after + 88, before + 88, 8); /* autoclear bits go at any writable open */
    }
    if (place == bitmap_directory(rig->path))
        after[15] = before[15]; /* the flag "in use" */
    if (memcmp(before, after, sizeof(after)) != 0)
        fail_msg("%s changed", name);
    assert_int_equal(peek_be64(rig->path, 72), QCOW2_INCOMPATIBLE_CORRUPT);
    assert_int_equal(rig_try_open(rig, false, &err), -EUCLEAN);
    assert_string_equal(err.code, "corrupt-image");
    assert_non_null(strstr(err.hint, "--repair"));
    assert_int_equal(rig_try_open(rig, true, NULL), 0);
    rig_expect(rig, 64 * KIB, 64 * KIB, 3);
    assert_int_equal(rig_io(rig, IMAGE_WRITE, 64 * KIB, 4096, 9), -EROFS);
    assert_int_equal(rig_close(rig), 0);
    assert_int_equal(command(text, sizeof(text), "qemu-img info '%s'", rig->path), 0);
    assert_non_null(strstr(text, "corrupt: true"));
    assert_int_equal(command(text, sizeof(text), "qemu-img check '%s'", rig->path), 2);
    command_or_fail("qemu-io -r -c 'read -P 3 64k 64k' '%s'", rig->path);
}

static void attack(struct rig *rig, enum target target, enum image_op op, uint64_t length)
{
    static uint8_t before[CLUSTER];
    make(rig);
    uint64_t place = place_of(rig->path, target);
    poke_be64(rig->path, l2_entry_place(rig->path, 0), place ? place | QCOW2_COPIED : QCOW2_COPIED | 0);
    peek(rig->path, place, before, sizeof(before));
    rig_open(rig);
    int r = rig_io(rig, op, 0, length, 0xee);
    /* A discard that only unlinks is answered before anything is written. */
    if (op != IMAGE_DISCARD)
        assert_int_equal(r, -EUCLEAN);
    assert_int_equal(rig_io(rig, IMAGE_FLUSH, 0, 0, 0), -EUCLEAN);
    assert_int_equal(rig_io(rig, IMAGE_WRITE, 10 * MIB, 4096, 1), -EUCLEAN);
    rig_expect(rig, 64 * KIB, 64 * KIB, 3);
    rig_expect(rig, 600 * MIB, 64 * KIB, 4);
    assert_int_equal(rig_close(rig), -EUCLEAN);
    judge(rig, place, before, names[target]);
}

static void test_guest_writes_in_place_never_hit_metadata(void **state)
{
    /* An entry for the header itself is no entry: offset 0 means that there is no cluster. */
    for (unsigned target = AT_REFTABLE; target < TARGETS; target++) {
        attack(*state, target, IMAGE_WRITE, 4096);
        attack(*state, target, IMAGE_WRITE, 64 * KIB);
    }
}

static void test_guest_discards_never_free_metadata(void **state)
{
    for (unsigned target = AT_REFTABLE; target < TARGETS; target++)
        attack(*state, target, IMAGE_DISCARD, 64 * KIB);
}

/* The entry is in a part of the table that was cached before it was made hostile: each write is asked about, not only
 * what is loaded. */
static void test_write_is_checked_although_entries_were(void **state)
{
    struct rig *rig = *state;
    make(rig);
    rig_open(rig);
    rig_write(rig, 0, 4096, 5);
    rig_flush(rig);
    /* What the guest's cluster is becomes a table. */
    uint64_t host = peek_be64(rig->path, l2_entry_place(rig->path, 0)) & QCOW2_OFFSET_MASK;
    guard_add(rig->q, GUARD_L2, host, CLUSTER);
    assert_int_equal(rig_io(rig, IMAGE_WRITE, 0, 4096, 6), -EUCLEAN);
    rig_expect(rig, 0, 4096, 5);
    assert_int_equal(rig_close(rig), -EUCLEAN);
    assert_int_equal(peek_be64(rig->path, 72), QCOW2_INCOMPATIBLE_CORRUPT);
}

/* A table is written only where a table of its kind is known to be. */
static void test_tables_are_written_to_tables_only(void **state)
{
    struct rig *rig = *state;
    make(rig);
    rig_open(rig);
    rig_write(rig, MIB, 4096, 5);
    uint64_t table = be64toh(atomic_load(&rig->q->l1[0])) & QCOW2_OFFSET_MASK;
    guard_remove(rig->q, table, CLUSTER);
    assert_int_equal(rig_io(rig, IMAGE_FLUSH, 0, 0, 0), -EUCLEAN);
    assert_int_equal(rig_close(rig), -EUCLEAN);
    assert_int_equal(peek_be64(rig->path, 72), QCOW2_INCOMPATIBLE_CORRUPT);
    assert_int_equal(peek_be64(rig->path, l2_entry_place(rig->path, MIB)), 0);
}

/* Two tables in one place: writing one would change the other. Refused for writing, still good for reading. */
static void test_tables_over_each_other_are_refused(void **state)
{
    struct rig *rig = *state;
    for (unsigned i = 0; i < 3; i++) {
        make(rig);
        uint64_t l1 = peek_be64(rig->path, 40);
        uint64_t reftable = peek_be64(rig->path, 48);
        if (i == 0) /* one L2 table for two L1 entries, each with the copied flag */
            poke_be64(rig->path, l1 + 8, peek_be64(rig->path, l1));
        else if (i == 1) /* a refcount block that is an L2 table */
            poke_be64(rig->path, l1 + 8, peek_be64(rig->path, reftable) | QCOW2_COPIED);
        else /* one refcount block twice */
            poke_be64(rig->path, reftable + 8, peek_be64(rig->path, reftable));
        struct error err = ERROR_INIT;
        assert_int_equal(rig_try_open(rig, false, &err), -EUCLEAN);
        assert_string_equal(err.code, "corrupt-image");
        assert_int_equal(rig_try_open(rig, true, NULL), 0);
        rig_expect(rig, 0, 64 * KIB, 3);
        assert_int_equal(rig_close(rig), 0);
    }
}

/* The first cluster is never anybody's, whatever the counts say (cloud-hypervisor #8358). */
static void test_header_is_never_allocated(void **state)
{
    static uint8_t before[CLUSTER];
    static uint8_t after[CLUSTER];
    struct rig *rig = *state;
    rig_create(rig, &(struct image_create_options){.size = 64 * MIB});
    poke(rig->path, peek_be64(rig->path, peek_be64(rig->path, 48)), "\0\0", 2);
    peek(rig->path, 0, before, sizeof(before));
    rig_open(rig);
    allocator_free(rig->q->allocator, 0, 1);
    int r = 0;
    for (uint64_t at = 0; r == 0 && at < 64 * MIB; at += CLUSTER)
        r = rig_io(rig, IMAGE_WRITE, at, CLUSTER, 0xee);
    (void)rig_close(rig);
    peek(rig->path, 0, after, sizeof(after));
    memcpy(after + 72, before + 72, 8);
    assert_memory_equal(before, after, sizeof(before));
}

/* Version 2 has no corrupt bit: fenced all the same. */
static void test_version_2_is_fenced(void **state)
{
    struct rig *rig = *state;
    rig_create(rig, &(struct image_create_options){.size = 64 * MIB, .version = 2});
    rig_open(rig);
    rig_write(rig, 0, 2 * CLUSTER, 1);
    rig_close_clean(rig);
    poke_be64(rig->path, l2_entry_place(rig->path, 0), peek_be64(rig->path, 40) | QCOW2_COPIED);
    uint64_t l1 = peek_be64(rig->path, peek_be64(rig->path, 40));
    rig_open(rig);
    assert_int_equal(rig_io(rig, IMAGE_WRITE, 0, 4096, 0xee), -EUCLEAN);
    rig_expect(rig, CLUSTER, CLUSTER, 1);
    assert_int_equal(rig_close(rig), -EUCLEAN);
    assert_int_equal(peek_be64(rig->path, peek_be64(rig->path, 40)), l1);
}

/* The set follows tables that move: the places they leave may be data again. */
static void test_places_that_tables_left_are_free(void **state)
{
    struct rig *rig = *state;
    rig_create(rig, &(struct image_create_options){.size = 4 * MIB, .cluster_size = 512, .refcount_bits = 64});
    rig_open(rig);
    for (uint64_t size = 8 * MIB; size <= 64 * MIB; size *= 2) {
        uint64_t l1 = rig->q->l1_offset;
        uint64_t reftable = rig->q->header.refcount_table_offset;
        assert_int_equal(rig_resize(rig, size), 0);
        for (uint64_t at = 0; at < size; at += MIB)
            rig_write(rig, at, MIB, (int)(at / MIB) | 1);
        rig_flush(rig);
        assert_true(rig->q->l1_offset != l1);
        assert_false(guard_hits(rig->q, l1, 512) && guard_hits(rig->q, reftable, 512));
        assert_true(guard_hits(rig->q, rig->q->l1_offset, 512));
    }
    for (uint64_t at = 0; at < 64 * MIB; at += MIB)
        rig_expect(rig, at, MIB, (int)(at / MIB) | 1);
    rig_close_clean(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_guest_writes_in_place_never_hit_metadata, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_guest_discards_never_free_metadata, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_write_is_checked_although_entries_were, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_tables_are_written_to_tables_only, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_tables_over_each_other_are_refused, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_header_is_never_allocated, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_version_2_is_fenced, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_places_that_tables_left_are_free, rig_setup_in_memory, rig_teardown),
    };
    return have_qemu_img() ? cmocka_run_group_tests(tests, NULL, NULL) : SKIP;
}
