// SPDX-License-Identifier: Apache-2.0
/* Images cut shorter: what stays, what comes back when they grow again, what is refused. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "provisioner/blk/blocking.h"
#include "provisioner/blk/shrink.h"

enum { SIZE = 8 << 20, CUT = (3 << 20) + 1536, BLOCK = 4096 };

static char path[] = "/tmp/platter-shrink.XXXXXX";
static const char *const formats[] = {"raw", "qcow2"};

static int make_path(void **state)
{
    (void)state;
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int remove_path(void **state)
{
    (void)state;
    return unlink(path);
}

static struct io_file *open_file(bool truncated)
{
    struct io_file_options options = {.writable = true};
    struct io_file *file = NULL;
    int fd = open(path, O_RDWR | O_CLOEXEC | (truncated ? O_TRUNC : 0));
    assert_true(fd >= 0);
    assert_int_equal(io_file_open(fd, &options, &file, NULL), 0);
    return file;
}

static struct image *open_image(const char *format)
{
    struct image_options options = {0};
    struct image_layer layer = {.format = format, .file = open_file(false)};
    struct image *image = NULL;
    assert_int_equal(image_open(&layer, 1, &options, &image, NULL), 0);
    return image;
}

static void make_image(const char *format)
{
    struct image_create_options options = {.size = SIZE};
    struct io_file *file = open_file(true);
    assert_int_equal(image_create(file, format, &options, NULL), 0);
    (void)io_file_close(file);
}

static void write_block(struct image *image, uint64_t offset, size_t length, int byte)
{
    struct blocking *b = NULL;
    CLEANUP_FREE uint8_t *buffer = malloc(length);
    memset(buffer, byte, length);
    assert_int_equal(blocking_create(image, &b, NULL), 0);
    assert_int_equal(blocking_write(b, buffer, length, offset), 0);
    assert_int_equal(blocking_flush(b), 0);
    (void)blocking_destroy(b);
}

static void reads_as(struct image *image, uint64_t offset, size_t length, int byte)
{
    struct blocking *b = NULL;
    CLEANUP_FREE uint8_t *buffer = malloc(length);
    assert_int_equal(blocking_create(image, &b, NULL), 0);
    assert_int_equal(blocking_read(b, buffer, length, offset), 0);
    (void)blocking_destroy(b);
    for (size_t i = 0; i < length; i++)
        assert_int_equal(buffer[i], byte);
}

static void begin_stays_and_end_is_gone(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
        struct image_geometry geometry;
        make_image(formats[i]);
        struct image *image = open_image(formats[i]);
        write_block(image, 0, SIZE, 7);
        assert_int_equal(shrink_image(image, CUT, NULL, NULL), 0);
        assert_int_equal(image_close(image, NULL), 0);
        image = open_image(formats[i]);
        image_geometry(image, &geometry);
        assert_int_equal(geometry.size, CUT);
        reads_as(image, 0, CUT, 7);
        assert_int_equal(image_resize(image, SIZE, NULL), 0);
        reads_as(image, 0, CUT, 7);
        reads_as(image, CUT, SIZE - CUT, 0);
        assert_int_equal(image_close(image, NULL), 0);
    }
}

static void data_beyond_is_found_at_its_first_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
        struct error err = ERROR_INIT;
        make_image(formats[i]);
        struct image *image = open_image(formats[i]);
        write_block(image, 0, CUT, 7);
        assert_int_equal(shrink_check(image, CUT, false, &err), 0);
        write_block(image, SIZE - BLOCK + 5, 1, 1);
        assert_int_equal(shrink_check(image, CUT, false, &err), -EOPNOTSUPP);
        assert_string_equal(error_code_word(&err), "data-beyond");
        assert_non_null(strstr(err.message, "8384517"));
        assert_int_equal(shrink_check(image, CUT, true, &err), 0);
        assert_int_equal(image_close(image, NULL), 0);
    }
}

static void file_system_that_needs_the_end_is_never_cut(void **state)
{
    struct error err = ERROR_INIT;
    (void)state;
    make_image("qcow2");
    struct image *image = open_image("qcow2");
    uint8_t super[16] = {'X', 'F', 'S', 'B', 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 8, 0}; /* 2048 blocks of 4096 */
    struct blocking *b = NULL;
    assert_int_equal(blocking_create(image, &b, NULL), 0);
    assert_int_equal(blocking_write(b, super, sizeof(super), 0), 0);
    (void)blocking_destroy(b);
    assert_int_equal(shrink_check(image, SIZE - 512, true, &err), -EOPNOTSUPP);
    assert_string_equal(error_code_word(&err), "content-beyond");
    assert_int_equal(shrink_check(image, SIZE, false, &err), 0);
    assert_int_equal(image_close(image, NULL), 0);
}

static void same_size_again_is_no_change(void **state)
{
    (void)state;
    make_image("qcow2");
    struct image *image = open_image("qcow2");
    assert_int_equal(shrink_image(image, CUT, NULL, NULL), 0);
    assert_int_equal(shrink_image(image, CUT, NULL, NULL), 0);
    assert_int_equal(shrink_image(image, SIZE, NULL, NULL), 0);
    struct image_geometry geometry;
    image_geometry(image, &geometry);
    assert_int_equal(geometry.size, CUT);
    assert_int_equal(image_close(image, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(begin_stays_and_end_is_gone),
        cmocka_unit_test(data_beyond_is_found_at_its_first_byte),
        cmocka_unit_test(file_system_that_needs_the_end_is_never_cut),
        cmocka_unit_test(same_size_again_is_no_change),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
