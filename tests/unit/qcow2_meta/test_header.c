// SPDX-License-Identifier: Apache-2.0
/* Headers, well-formed and hostile: each row changes one field of a good header and names what must be said to it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "helpers.h"

#define CLUSTER 65536u
#define EXTENSIONS 112u /* where they begin */

static uint8_t good[CLUSTER];
static uint64_t good_length;

static int setup_good(void **state)
{
    char path[256];
    (void)state;
    scratch_make(path, sizeof(path));
    struct image_create_options options = {.size = GIB};
    assert_int_equal(create(path, &options, NULL), 0);
    struct io_file *file = file_open(path);
    assert_int_equal(io_file_read(file, good, sizeof(good), 0), 0);
    assert_int_equal(io_file_length(file, &good_length), 0);
    (void)io_file_close(file);
    scratch_remove(path);
    return 0;
}

/* parse, features, validate; the code word of the first refusal, "" = accepted. */
static void judge(const uint8_t *buffer, size_t length, uint64_t file_length, struct error *err)
{
    struct header h = {0};
    error_clear(err);
    if (header_parse(buffer, length, &h, err) < 0)
        return;
    if (header_check_features(&h, err) == 0)
        (void)header_validate(&h, file_length, err);
    header_release(&h);
}

struct row {
    const char *what;
    unsigned offset, width;
    uint64_t value;
    const char *code; /* "" = accepted */
};

static const char CORRUPT[] = "corrupt-image";
static const char UNSUPPORTED[] = "unsupported-feature";

static const struct row rows[] = {
    {"as it is", 4, 4, 3, ""},
    {"magic", 0, 4, 0x514649fa, CORRUPT},
    {"version 1", 4, 4, 1, UNSUPPORTED},
    {"version 4", 4, 4, 4, UNSUPPORTED},
    {"backing name without length", 8, 8, 4096, ""},
    {"backing name in the header", 8, 8, 100, CORRUPT},
    {"backing name behind the cluster", 8, 8, CLUSTER + 1, CORRUPT},
    {"cluster_bits 8", 20, 4, 8, CORRUPT},
    {"cluster_bits 22", 20, 4, 22, CORRUPT},
    {"cluster_bits 64", 20, 4, 64, CORRUPT},
    {"cluster_bits huge", 20, 4, 0xffffffff, CORRUPT},
    {"size needs one more entry", 24, 8, GIB + 512, CORRUPT},
    {"size 2^63", 24, 8, UINT64_C(1) << 63, CORRUPT},
    {"size 2^64 - 1", 24, 8, UINT64_MAX, CORRUPT},
    {"size 0", 24, 8, 0, ""},
    {"AES", 32, 4, 1, UNSUPPORTED},
    {"LUKS", 32, 4, 2, UNSUPPORTED},
    {"l1_size 1", 36, 4, 1, CORRUPT},
    {"l1_size behind the file", 36, 4, 65536 / 8 + 1, CORRUPT},
    {"l1_size 32 MiB + 8", 36, 4, (32 << 20) / 8 + 1, CORRUPT},
    {"l1_size all ones", 36, 4, 0xffffffff, CORRUPT},
    {"l1_offset 0", 40, 8, 0, CORRUPT},
    {"l1_offset not aligned", 40, 8, 3 * CLUSTER + 512, CORRUPT},
    {"l1_offset behind the file", 40, 8, UINT64_C(1) << 40, CORRUPT},
    {"l1_offset at the end of numbers", 40, 8, UINT64_MAX - CLUSTER + 1, CORRUPT},
    {"l1 over the refcount table", 40, 8, CLUSTER, CORRUPT},
    {"refcount table at 0", 48, 8, 0, CORRUPT},
    {"refcount table not aligned", 48, 8, CLUSTER + 8, CORRUPT},
    {"refcount table behind the file", 48, 8, UINT64_C(1) << 40, CORRUPT},
    {"refcount table of 0 clusters", 56, 4, 0, CORRUPT},
    {"refcount table too long", 56, 4, 129, CORRUPT},
    {"refcount table of 2^32 - 1 clusters", 56, 4, 0xffffffff, CORRUPT},
    {"snapshots without a table", 60, 4, 1, CORRUPT},
    {"too many snapshots", 60, 4, 65537, CORRUPT},
    {"incompatible dirty", 72, 8, 1, ""},
    {"incompatible corrupt", 72, 8, 2, ""},
    {"incompatible external data", 72, 8, 4, UNSUPPORTED},
    {"compression bit without a type", 72, 8, 8, CORRUPT},
    {"incompatible extended L2", 72, 8, 16, CORRUPT}, /* the L1 table is too short then */
    {"incompatible bit 5", 72, 8, 32, UNSUPPORTED},
    {"incompatible bit 63", 72, 8, UINT64_C(1) << 63, UNSUPPORTED},
    {"compatible, all bits", 80, 8, UINT64_MAX, ""},
    {"autoclear, all bits", 88, 8, UINT64_MAX, ""},
    {"refcount_order 6", 96, 4, 6, ""},
    {"refcount_order 7", 96, 4, 7, CORRUPT},
    {"refcount_order huge", 96, 4, 0xffffffff, CORRUPT},
    {"header_length 96", 100, 4, 96, CORRUPT},
    {"header_length 0", 100, 4, 0, CORRUPT},
    {"header_length 108", 100, 4, 108, CORRUPT},
    {"header_length behind the cluster", 100, 4, CLUSTER + 8, CORRUPT},
    {"header_length huge", 100, 4, 0xfffffff8, CORRUPT},
    {"compression type without its bit", 104, 1, 1, CORRUPT},
    {"compression type 255", 104, 1, 255, CORRUPT},
    {"extension behind the cluster", EXTENSIONS + 4, 4, CLUSTER, CORRUPT},
    {"extension huge", EXTENSIONS + 4, 4, 0xffffffff, CORRUPT},
    {"feature names of a wrong length", EXTENSIONS + 4, 4, 376, CORRUPT},
    {"unknown extension", EXTENSIONS, 4, 0x12345678, ""},
    {"backing format too long", EXTENSIONS, 4, QCOW2_EXTENSION_BACKING_FORMAT, CORRUPT},
    {"bitmaps of a wrong length", EXTENSIONS, 4, QCOW2_EXTENSION_BITMAPS, CORRUPT},
    {"encryption header without encryption", EXTENSIONS, 4, QCOW2_EXTENSION_ENCRYPTION, CORRUPT},
};

static void put(uint8_t *buffer, unsigned offset, unsigned width, uint64_t value)
{
    for (unsigned i = 0; i < width; i++)
        buffer[offset + i] = (uint8_t)(value >> (8 * (width - 1 - i)));
}

static void test_rows(void **state)
{
    (void)state;
    static uint8_t bad[CLUSTER];
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct error err = ERROR_INIT;
        memcpy(bad, good, sizeof(bad));
        put(bad, rows[i].offset, rows[i].width, rows[i].value);
        judge(bad, sizeof(bad), good_length, &err);
        if (strcmp(err.code, rows[i].code) != 0 || (err.errnum != 0) != (rows[i].code[0] != 0))
            fail_msg("%s: '%s' (%s), not '%s'", rows[i].what, err.code, err.message, rows[i].code);
    }
}

/* A buffer that ends anywhere is refused or asked to be longer, never read beyond (the sanitizer watches). */
static void test_truncated(void **state)
{
    (void)state;
    for (size_t length = 0; length < 1024; length++) {
        uint8_t *exact = malloc(length ? length : 1);
        struct header h;
        assert_non_null(exact);
        memcpy(exact, good, length);
        int r = header_parse(exact, length, &h, NULL);
        assert_int_equal(r, length < 72 ? -EUCLEAN : -EAGAIN);
        free(exact);
    }
}

/* Random bytes over a good header: whatever is accepted keeps its own bounds. */
static void test_random(void **state)
{
    (void)state;
    static uint8_t bad[512];
    unsigned seed = 20260101;
    print_message("seed %u\n", seed);
    for (unsigned round = 0; round < 200000; round++) {
        struct header h;
        memcpy(bad, good, sizeof(bad));
        store_be32(bad + 20, 9);
        for (unsigned n = 1 + (unsigned)rand_r(&seed) % 4; n > 0; n--)
            bad[(unsigned)rand_r(&seed) % (round % 2 ? 120 : sizeof(bad))] = (uint8_t)rand_r(&seed);
        if (header_parse(bad, sizeof(bad), &h, NULL) < 0)
            continue;
        assert_true(h.extensions_length <= sizeof(bad) && strlen(h.backing) <= QCOW2_BACKING_NAME_MAX);
        if (header_check_features(&h, NULL) == 0 && header_validate(&h, good_length, NULL) == 0)
            assert_true((uint64_t)h.l1_size * 8 <= good_length);
        header_release(&h);
    }
}

static void test_feature_is_named(void **state)
{
    (void)state;
    static uint8_t bad[CLUSTER];
    struct error err = ERROR_INIT;
    memcpy(bad, good, sizeof(bad));
    put(bad, 72, 8, UINT64_C(1) << 40);
    judge(bad, sizeof(bad), good_length, &err);
    assert_non_null(strstr(err.message, "bit 40"));
    bad[EXTENSIONS + 8 + 1] = 40; /* the name that was of bit 0, with something a terminal should not see */
    bad[EXTENSIONS + 8 + 2] = '\033';
    judge(bad, sizeof(bad), good_length, &err);
    assert_non_null(strstr(err.message, "'?irty bit'"));
}

static void test_twice(void **state)
{
    (void)state;
    static uint8_t bad[CLUSTER];
    struct error err = ERROR_INIT;
    memset(bad, 0, sizeof(bad));
    memcpy(bad, good, EXTENSIONS);
    put(bad, EXTENSIONS, 4, 0x1000);
    put(bad, EXTENSIONS + 4, 4, 3);
    put(bad, EXTENSIONS + 16, 4, 0x1001);
    judge(bad, sizeof(bad), good_length, &err);
    assert_int_equal(err.errnum, 0);
    put(bad, EXTENSIONS + 16, 4, 0x1000);
    judge(bad, sizeof(bad), good_length, &err);
    assert_string_equal(err.code, CORRUPT);
}

static void test_backing_name(void **state)
{
    (void)state;
    static uint8_t bad[CLUSTER];
    struct header h;
    memcpy(bad, good, sizeof(bad));
    memcpy(bad + 8192, "a/b", 4);
    put(bad, 8, 8, 8192);
    put(bad, 16, 4, 3); /* not terminated on disk */
    assert_int_equal(header_parse(bad, sizeof(bad), &h, NULL), 0);
    assert_string_equal(h.backing, "a/b");
    header_release(&h);
    put(bad, 16, 4, 4); /* a zero byte inside */
    assert_int_equal(header_parse(bad, sizeof(bad), &h, NULL), -EUCLEAN);
    put(bad, 16, 4, 1024);
    assert_int_equal(header_parse(bad, sizeof(bad), &h, NULL), -EUCLEAN);
    put(bad, 16, 4, 1023);
    put(bad, 8, 8, CLUSTER - 1022);
    assert_int_equal(header_parse(bad, sizeof(bad), &h, NULL), -EUCLEAN);
    put(bad, 8, 8, 500); /* the feature names reach to 504 */
    put(bad, 16, 4, 3);
    assert_int_equal(header_parse(bad, sizeof(bad), &h, NULL), -EUCLEAN);
}

static void test_version_2_has_no_features(void **state)
{
    (void)state;
    static uint8_t old[CLUSTER];
    struct error err = ERROR_INIT;
    memcpy(old, good, 72);
    put(old, 4, 4, 2);
    judge(old, sizeof(old), good_length, &err);
    assert_int_equal(err.errnum, 0);
    struct header h;
    assert_int_equal(header_parse(old, sizeof(old), &h, NULL), 0);
    assert_int_equal(h.refcount_order, 4);
    assert_int_equal(h.incompatible, 0);
    header_release(&h);
}

static void test_serialise_is_parse_backwards(void **state)
{
    (void)state;
    static uint8_t again[CLUSTER];
    struct header h;
    assert_int_equal(header_parse(good, sizeof(good), &h, NULL), 0);
    assert_int_equal(header_serialise(&h, again, sizeof(again)), 0);
    assert_memory_equal(again, good, sizeof(good));
    header_release(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_feature_is_named),
        cmocka_unit_test(test_twice),
        cmocka_unit_test(test_backing_name),
        cmocka_unit_test(test_version_2_has_no_features),
        cmocka_unit_test(test_serialise_is_parse_backwards),
    };
    return cmocka_run_group_tests(tests, setup_good, NULL);
}
