// SPDX-License-Identifier: Apache-2.0
/* Creating images: every combination of options, judged by qemu-img check and qemu-img info. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <jansson.h>

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

/* What qemu-img info says against what was asked for. */
static void judge_info(const struct image_create_options *o)
{
    char text[8192];
    assert_int_equal(command_output(text, sizeof(text), "qemu-img info --output=json '%s'", path), 0);
    json_t *info = json_loads(text, 0, NULL);
    assert_non_null(info);
    json_t *data = json_object_get(json_object_get(info, "format-specific"), "data");
    assert_non_null(data);
    assert_int_equal(json_integer_value(json_object_get(info, "virtual-size")), o->size);
    assert_int_equal(json_integer_value(json_object_get(info, "cluster-size")),
                     o->cluster_size ? o->cluster_size : 65536);
    assert_string_equal(json_string_value(json_object_get(data, "compat")), o->version == 2 ? "0.10" : "1.1");
    assert_int_equal(json_integer_value(json_object_get(data, "refcount-bits")),
                     o->refcount_bits ? o->refcount_bits : 16);
    if (o->version != 2) {
        assert_int_equal(json_is_true(json_object_get(data, "extended-l2")), o->extended_l2);
        assert_string_equal(json_string_value(json_object_get(data, "compression-type")),
                            o->compression ? o->compression : "zlib");
        assert_false(json_is_true(json_object_get(data, "corrupt")));
    }
    const char *backing = json_string_value(json_object_get(info, "backing-filename"));
    assert_string_equal(backing ? backing : "", o->backing ? o->backing : "");
    const char *format = json_string_value(json_object_get(info, "backing-filename-format"));
    assert_string_equal(format ? format : "", o->backing_format ? o->backing_format : "");
    json_decref(info);
}

static void judge_own(const struct image_create_options *o)
{
    struct image_info info;
    struct io_file *file = file_open(path);
    assert_int_equal(image_probe(file, "qcow2", &info, NULL), 0);
    (void)io_file_close(file);
    assert_int_equal(info.size, o->size);
    assert_int_equal(info.version, o->version ? o->version : 3);
    assert_int_equal(info.extended_l2, o->extended_l2);
    assert_string_equal(info.compression, o->compression ? o->compression : "zlib");
    assert_string_equal(info.backing, o->backing ? o->backing : "");
    if (o->backing)
        return;
    struct image *image = open_image(path, false, NULL, NULL);
    assert_non_null(image);
    assert_int_equal(image_close(image, NULL), 0);
}

static void judge(const struct image_create_options *o)
{
    struct error err = ERROR_INIT;
    if (create(path, o, &err) < 0)
        fail_msg("size %llu cluster %u version %u refcount %u: %s", (unsigned long long)o->size, o->cluster_size,
                 o->version, o->refcount_bits, err.message);
    if (!o->backing)
        assert_int_equal(qemu_check(path), 0);
    judge_info(o);
    struct stat before;
    struct stat after;
    assert_int_equal(stat(path, &before), 0);
    judge_own(o);
    assert_int_equal(stat(path, &after), 0);
    assert_int_equal(before.st_size, after.st_size);
    if (!o->backing)
        assert_int_equal(qemu_check(path), 0);
}

static void test_clusters_and_widths(void **state)
{
    (void)state;
    for (uint32_t cluster = 512; cluster <= 2 * MIB; cluster *= 4)
        for (uint32_t bits = 1; bits <= 64; bits *= 2)
            judge(&(struct image_create_options){.size = 100 * MIB, .cluster_size = cluster, .refcount_bits = bits});
    judge(&(struct image_create_options){.size = 3 * GIB, .cluster_size = 2 * MIB});
}

static void test_versions_and_features(void **state)
{
    (void)state;
    judge(&(struct image_create_options){.size = 1 * GIB});
    judge(&(struct image_create_options){.size = 1 * GIB, .version = 2});
    judge(&(struct image_create_options){.size = 512, .version = 2, .cluster_size = 512});
    judge(&(struct image_create_options){.size = 0});
    judge(&(struct image_create_options){.size = 1 * GIB, .compression = "zstd"});
    for (uint32_t cluster = 16384; cluster <= 2 * MIB; cluster *= 2)
        judge(&(struct image_create_options){.size = 1 * GIB, .cluster_size = cluster, .extended_l2 = true});
    judge(&(struct image_create_options){
        .size = 1 * GIB, .extended_l2 = true, .compression = "zstd", .refcount_bits = 1});
}

/* L1 tables up to the limit, with so many refcount blocks that their table has several clusters. */
static void test_huge(void **state)
{
    (void)state;
    judge(&(struct image_create_options){.size = 128 * GIB, .cluster_size = 512});
    judge(&(struct image_create_options){.size = 128 * GIB, .cluster_size = 512, .refcount_bits = 64});
    judge(&(struct image_create_options){.size = 2048 * TIB, .cluster_size = 65536});
    judge(&(struct image_create_options){.size = 64 * TIB, .cluster_size = 16384, .extended_l2 = true});
    struct error err = ERROR_INIT;
    struct image_create_options over = {.size = 128 * GIB + 512, .cluster_size = 512};
    assert_int_equal(create(path, &over, &err), -EFBIG);
    assert_non_null(strstr(err.message, "too many"));
}

static void test_backing(void **state)
{
    (void)state;
    static char longest[QCOW2_BACKING_NAME_MAX + 1];
    memset(longest, 'b', QCOW2_BACKING_NAME_MAX);
    judge(&(struct image_create_options){.size = 64 * MIB, .backing = "base.img", .backing_format = "raw"});
    judge(&(struct image_create_options){.size = 64 * MIB, .backing = longest, .backing_format = "qcow2"});
    judge(&(struct image_create_options){
        .size = 64 * MIB, .backing = longest, .backing_format = "qcow2", .cluster_size = 4096});
    judge(&(struct image_create_options){
        .size = 64 * MIB, .backing = "b", .backing_format = "raw", .cluster_size = 512, .version = 2});
    struct image_create_options narrow = {.size = 64 * MIB, .backing = longest, .cluster_size = 512};
    assert_int_equal(create(path, &narrow, NULL), -EINVAL);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct image_create_options bad[] = {
        {.size = 513},
        {.size = MIB, .cluster_size = 256},
        {.size = MIB, .cluster_size = 3 * 65536},
        {.size = MIB, .cluster_size = 4 << 20},
        {.size = MIB, .version = 1},
        {.size = MIB, .version = 4},
        {.size = MIB, .refcount_bits = 3},
        {.size = MIB, .refcount_bits = 128},
        {.size = MIB, .compression = "lz4"},
        {.size = MIB, .version = 2, .compression = "zstd"},
        {.size = MIB, .version = 2, .refcount_bits = 8},
        {.size = MIB, .version = 2, .extended_l2 = true},
        {.size = MIB, .cluster_size = 8192, .extended_l2 = true},
        {.size = MIB, .backing_format = "raw"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(create(path, &bad[i], NULL), -EINVAL);
    struct image_create_options preallocated = {.size = MIB, .preallocate = true};
    assert_int_equal(create(path, &preallocated, NULL), -EOPNOTSUPP);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_clusters_and_widths, setup, teardown),
        cmocka_unit_test_setup_teardown(test_versions_and_features, setup, teardown),
        cmocka_unit_test_setup_teardown(test_huge, setup, teardown),
        cmocka_unit_test_setup_teardown(test_backing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
    };
    return have_qemu_img() ? cmocka_run_group_tests(tests, NULL, NULL) : SKIP;
}
