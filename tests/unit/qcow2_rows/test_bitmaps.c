// SPDX-License-Identifier: Apache-2.0
/* Persistent bitmaps of other tools: never left looking valid once something was written, their clusters never lost. */
#include <errno.h>
#include <string.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "rows.h"

static void make(struct rig *rig)
{
    command_or_fail("qemu-img create -q -f qcow2 '%s' 64M", rig->path);
    command_or_fail("qemu-img bitmap --add '%s' first", rig->path);
    command_or_fail("qemu-img bitmap --add -g 512k '%s' another-one", rig->path);
    command_or_fail("qemu-io -c 'write 0 5M' '%s'", rig->path);
}

static unsigned count_of(const char *path, const char *what)
{
    char text[8192];
    unsigned count = 0;
    assert_int_equal(command(text, sizeof(text), "qemu-img info '%s'", path), 0);
    for (const char *at = text; (at = strstr(at, what)); at++)
        count++;
    return count;
}

static void test_bitmaps_are_in_use_after_a_writable_open(void **state)
{
    struct rig *rig = *state;
    make(rig);
    assert_int_equal(count_of(rig->path, "in-use"), 0);
    assert_int_equal(rig_try_open(rig, true, NULL), 0);
    assert_int_equal(rig_close(rig), 0);
    assert_int_equal(count_of(rig->path, "in-use"), 0);
    rig_open(rig);
    /* Before the first write, should there be a crash. */
    assert_int_equal(count_of(rig->path, "in-use"), 2);
    rig_write(rig, 10 * MIB, 3 * MIB, 7);
    rig_discard(rig, 0, MIB);
    assert_int_equal(rig_resize(rig, 128 * MIB), 0);
    rig_write(rig, 100 * MIB, MIB, 8);
    rig_close_clean(rig);
    assert_int_equal(count_of(rig->path, "in-use"), 2);
    assert_int_equal(count_of(rig->path, "another-one"), 1);
    /* Again: nothing changes any more. */
    rig_open(rig);
    rig_expect(rig, 10 * MIB, 3 * MIB, 7);
    rig_close_clean(rig);
    /* Whoever made them can take them out, and all is clean. */
    command_or_fail("qemu-img bitmap --remove '%s' first", rig->path);
    command_or_fail("qemu-img bitmap --remove '%s' another-one", rig->path);
    assert_int_equal(qemu_check(rig->path), 0);
    command_or_fail("qemu-io -r -c 'read -P 7 10M 3M' -c 'read -P 8 100M 1M' '%s'", rig->path);
}

/* A directory that is not what the header says: the bit goes, which qemu takes for "inconsistent, all of them". */
static void test_damaged_directory_loses_its_bit(void **state)
{
    struct rig *rig = *state;
    static uint8_t cluster[CLUSTER];
    for (unsigned i = 0; i < 4; i++) {
        make(rig);
        peek(rig->path, 0, cluster, sizeof(cluster));
        uint64_t at = 104;
        while (at < CLUSTER && load_be32(cluster + at) != QCOW2_EXTENSION_BITMAPS)
            at += 8;
        assert_true(at < CLUSTER);
        uint64_t directory = load_be64(cluster + at + 24);
        if (i == 0) /* far too long */
            poke_be64(rig->path, at + 16, UINT64_C(1) << 60);
        else if (i == 1) /* behind the end */
            poke_be64(rig->path, at + 24, UINT64_C(1) << 40);
        else if (i == 2) /* a name longer than all of it */
            poke(rig->path, directory + 18, "\xff\xff", 2);
        else /* extra data likewise */
            poke(rig->path, directory + 20, "\xff\xff\xff\xff", 4);
        uint64_t before = peek_be64(rig->path, directory + 8);
        rig_open(rig);
        rig_write(rig, 10 * MIB, MIB, 7);
        assert_int_equal(rig_close(rig), 0);
        assert_int_equal(peek_be64(rig->path, 88), 0);
        assert_int_equal(peek_be64(rig->path, directory + 8), before);
        rig_open(rig);
        rig_expect(rig, 10 * MIB, MIB, 7);
        assert_int_equal(rig_close(rig), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_bitmaps_are_in_use_after_a_writable_open, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(test_damaged_directory_loses_its_bit, rig_setup, rig_teardown),
    };
    return have_qemu_img() ? cmocka_run_group_tests(tests, NULL, NULL) : SKIP;
}
