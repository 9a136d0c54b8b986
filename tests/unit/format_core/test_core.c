// SPDX-License-Identifier: Apache-2.0
/* The core's rules on raw images: what is refused, FUA and flushes, sticky errors, status, layers. */
#include "fixture.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/format/layer.h"

#define SIZE (1u << 20)

/* ---- what is refused ---- */

static void requests_are_checked(void **state)
{
    (void)state;
    struct image *image = raw_image(NULL, SIZE, false);
    struct client c;
    uint8_t *a = aligned(8192);
    client_open(&c, image);
    assert_int_equal(client_op(&c, IMAGE_READ, 0, SIZE - 4096, a, 8192), -EINVAL);
    assert_int_equal(client_op(&c, IMAGE_WRITE, 0, SIZE, a, 1), -EINVAL);
    assert_int_equal(client_op(&c, IMAGE_WRITE, 0, UINT64_MAX - 100, a, 4096), -EINVAL);
    assert_int_equal(client_op(&c, IMAGE_WRITE_ZEROES, 0, 4096, NULL, SIZE), -EINVAL);
    assert_int_equal(client_op(&c, IMAGE_DISCARD, 0, 4096, NULL, UINT64_MAX), -EINVAL);
    assert_int_equal(client_op(&c, IMAGE_READ, 0, SIZE, a, 0), 0);
    assert_int_equal(client_op(&c, IMAGE_WRITE, IMAGE_FUA, 0, a, 0), 0);
    assert_int_equal(client_op(&c, (enum image_op)99, 0, 0, a, 4096), -EOPNOTSUPP);
    client_close(&c);
    image_done(image);
    free(a);
}

static void images_are_checked(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct image *image = NULL;
    struct image_options options = {0};
    struct image_layer layers[2] = {{"raw", scratch_file(NULL, SIZE, false)}, {"raw", scratch_file(NULL, SIZE, false)}};
    assert_int_equal(image_open(layers, 0, &options, &image, &err), -EINVAL);
    assert_int_equal(image_open(layers, 2, &options, &image, &err), -EINVAL);
    assert_string_equal(error_code_word(&err), "backing-not-possible");
    assert_int_equal(image_open(layers, 2, &options, &image, NULL), -EINVAL);
    layers[0].format = "qcow9";
    assert_int_equal(image_open(layers, 1, &options, &image, NULL), -EINVAL);
    assert_int_equal(image_open(layers, 1, &options, &image, &err), -EINVAL);
    assert_string_equal(error_code_word(&err), "unknown-format");

    options.read_only = true;
    layers[0].format = "raw";
    assert_int_equal(image_open(layers, 1, &options, &image, &err), 0);
    struct client c;
    uint8_t *a = aligned(4096);
    client_open(&c, image);
    assert_int_equal(client_op(&c, IMAGE_READ, 0, 0, a, 4096), 0);
    assert_int_equal(client_op(&c, IMAGE_WRITE, 0, 0, a, 4096), -EROFS);
    assert_int_equal(client_op(&c, IMAGE_WRITE_ZEROES, 0, 0, NULL, 4096), -EROFS);
    assert_int_equal(client_op(&c, IMAGE_DISCARD, 0, 0, NULL, 4096), -EROFS);
    assert_int_equal(client_op(&c, IMAGE_FLUSH, 0, 0, NULL, 0), 0);
    assert_int_equal(image_resize(image, 2 * SIZE, &err), -EROFS);
    client_close(&c);
    image_done(image);
    (void)io_file_close(layers[1].file);
    assert_int_equal(image_close(NULL, NULL), 0);
    free(a);
}

static void create_and_probe(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct image_info info;
    for (int preallocate = 0; preallocate < 2; preallocate++) {
        struct io_file *file = scratch_file(NULL, 0, false);
        struct image_create_options options = {.size = SIZE, .preallocate = preallocate};
        assert_int_equal(image_create(file, "none", &options, &err), -EINVAL);
        assert_int_equal(image_create(file, "raw", &(struct image_create_options){.size = 513}, &err), -EINVAL);
        assert_int_equal(image_create(file, "raw", &options, &err), 0);
        assert_int_equal(image_create(file, "raw", &options, &err), -EEXIST);
        assert_int_equal(image_probe(file, "raw", &info, &err), 0);
        assert_int_equal(info.size, SIZE);
        (void)io_file_close(file);
    }
}

/* ---- flushes ---- */

static void fua_is_a_flush_after_the_write(void **state)
{
    (void)state;
    struct counting counting;
    struct image *image = counted_image(&counting, SIZE);
    struct client c;
    uint8_t *a = aligned(4096);
    client_open(&c, image);
    assert_int_equal(client_op(&c, IMAGE_WRITE, 0, 0, a, 4096), 0);
    assert_int_equal(counting.flushes, 0);
    assert_int_equal(client_op(&c, IMAGE_WRITE, IMAGE_FUA, 0, a, 4096), 0);
    assert_int_equal(counting.flushes, 1);
    assert_int_equal(client_op(&c, IMAGE_WRITE_ZEROES, IMAGE_FUA | IMAGE_MAY_UNMAP, 0, NULL, 4096), 0);
    assert_int_equal(counting.flushes, 2);
    assert_int_equal(client_op(&c, IMAGE_WRITE, IMAGE_FUA, 3, a, 100), 0);
    assert_int_equal(counting.flushes, 3);
    assert_int_equal(client_op(&c, IMAGE_FLUSH, 0, 0, NULL, 0), 0);
    assert_int_equal(counting.flushes, 4);
    counting.fail_write = -ENOSPC;
    assert_int_equal(client_op(&c, IMAGE_WRITE, IMAGE_FUA, 0, a, 4096), -ENOSPC);
    assert_int_equal(counting.flushes, 4);
    counting.fail_write = 0;
    assert_int_equal(client_op(&c, IMAGE_WRITE, 0, 0, a, 4096), 0); /* a write error costs its range only */
    client_close(&c);
    image_done(image);
    free(a);
}

static void a_flush_error_is_sticky(void **state)
{
    (void)state;
    struct counting counting;
    struct image *image = counted_image(&counting, SIZE);
    struct client c;
    struct error err = ERROR_INIT;
    uint8_t *a = aligned(4096);
    client_open(&c, image);
    counting.fail_flush = -EIO;
    assert_int_equal(client_op(&c, IMAGE_FLUSH, 0, 0, NULL, 0), -EIO);
    assert_int_equal(image_failed(image), -EIO);
    assert_int_equal(client_op(&c, IMAGE_FLUSH, 0, 0, NULL, 0), -EIO);
    assert_int_equal(client_op(&c, IMAGE_WRITE, 0, 0, a, 4096), -EIO);
    assert_int_equal(client_op(&c, IMAGE_DISCARD, 0, 0, NULL, 4096), -EIO);
    assert_int_equal(client_op(&c, IMAGE_READ, 0, 0, a, 4096), 0);
    assert_int_equal(image_resize(image, 2 * SIZE, &err), -EIO);
    image_fail(image, ENOSPC);
    assert_int_equal(image_failed(image), -EIO);
    client_close(&c);
    assert_int_equal(image_close(image, NULL), -EIO);
    free(a);
}

static void every_waiter_learns_of_a_failed_flush(void **state)
{
    (void)state;
    enum { COUNT = 20 };
    struct counting counting;
    struct image *image = counted_image(&counting, SIZE);
    struct client c, d;
    struct many m[COUNT];
    _Atomic unsigned left = COUNT;
    client_open(&c, image);
    client_open(&d, image);
    counting.fail_flush = -EIO;
    for (unsigned i = 0; i < COUNT; i++) {
        m[i] = (struct many){.request = {.op = IMAGE_FLUSH, .done = many_done}, .left = &left};
        image_submit(i % 2 ? c.queue : d.queue, &m[i].request);
    }
    while (left) {
        assert_true(io_loop_turn(c.loop, 0) >= 0);
        assert_true(io_loop_turn(d.loop, 0) >= 0);
    }
    for (unsigned i = 0; i < COUNT; i++)
        assert_int_equal(m[i].result, -EIO);
    assert_true(counting.flushes <= 2); /* they shared */
    client_close(&c);
    client_close(&d);
    assert_int_equal(image_close(image, NULL), -EIO);
}

/* ---- status ---- */

static void status_tells_holes(void **state)
{
    (void)state;
    struct image *image = raw_image(NULL, SIZE, false);
    struct client c;
    struct image_extent extents[8];
    struct image_status status = {extents, 8, 77};
    struct image_request request = {.op = IMAGE_STATUS, .offset = 4096, .length = SIZE - 4096, .status = &status};
    uint8_t *a = aligned(65536);
    memset(a, 1, 65536);
    client_open(&c, image);
    assert_int_equal(client_op(&c, IMAGE_WRITE, 0, 262144, a, 65536), 0);
    assert_int_equal(client_request(&c, &request), 0);
    assert_int_equal(status.count, 3);
    assert_int_equal(extents[0].length, 262144 - 4096);
    assert_int_equal(extents[0].state, IMAGE_EXTENT_ALLOCATED | IMAGE_EXTENT_ZERO);
    assert_int_equal(extents[1].length, 65536);
    assert_int_equal(extents[1].state, IMAGE_EXTENT_ALLOCATED);
    assert_int_equal(extents[2].length, SIZE - 262144 - 65536);
    status.max = 1;
    assert_int_equal(client_request(&c, &request), 0);
    assert_int_equal(status.count, 1);
    request.length = 0;
    assert_int_equal(client_request(&c, &request), -EINVAL);
    client_close(&c);
    image_done(image);
    free(a);
}

/* ---- layers: a format that passes everything down ---- */

struct glass_queue {
    struct layer_queue base;
};

static void glass_read(struct layer_queue *lq, uint64_t offset, struct iovec *iov, unsigned iovcnt, uint64_t length,
                       struct many *child, _Atomic unsigned *left)
{
    *child = (struct many){
        .request =
            {.op = IMAGE_READ, .offset = offset, .length = length, .iov = iov, .iovcnt = iovcnt, .done = many_done},
        .left = left};
    layer_submit_below(lq, &child->request);
}

static void below_is_clipped_with_zeros(void **state)
{
    (void)state;
    struct image *image = raw_image(NULL, SIZE, false);
    struct client c;
    uint8_t *a = aligned(65536);
    memset(a, 9, 65536);
    client_open(&c, image);
    assert_int_equal(client_op(&c, IMAGE_WRITE, 0, SIZE - 65536, a, 65536), 0);

    /* A layer queue of our own above the image's only one. */
    struct layer frozen = {.size = SIZE, .index = 1, .ops = &raw_layer_ops};
    struct io_file *file = scratch_file(NULL, 0, false);
    assert_int_equal(io_file_write(file, a, 8192, 0), 0);
    assert_int_equal(io_file_truncate(file, 6000), 0);
    frozen.file = file;
    frozen.size = 6000;
    struct glass_queue lower = {.base = {.layer = &frozen, .queue = c.queue}};
    struct glass_queue upper = {.base = {.queue = c.queue, .below = &lower.base}};
    _Atomic unsigned left = 1;
    struct many child;
    struct iovec iov[2] = {{a, 5000}, {a + 8192, 20000}};
    glass_read(&upper.base, 512, iov, 2, 25000, &child, &left);
    while (left)
        assert_true(io_loop_turn(c.loop, 1000) >= 0);
    assert_int_equal(child.result, 0);
    for (unsigned i = 0; i < 5000; i++)
        assert_int_equal(a[i], 9);
    for (unsigned i = 0; i < 20000; i++)
        assert_int_equal(a[8192 + i], i < 488 ? 9 : 0);

    /* Beyond it, and below the bottom: at once. */
    left = 1;
    memset(a, 9, 5000);
    glass_read(&upper.base, 6000, iov, 1, 5000, &child, &left);
    assert_int_equal(left, 0);
    assert_int_equal(a[0] | a[4999], 0);
    left = 1;
    memset(a, 9, 5000);
    glass_read(&lower.base, 0, iov, 1, 5000, &child, &left);
    assert_int_equal(left, 0);
    assert_int_equal(a[0] | a[4999], 0);

    struct image_extent extents[4];
    struct image_status status = {extents, 4, 0};
    left = 1;
    child = (struct many){.request = {.op = IMAGE_STATUS, .length = 9000, .status = &status, .done = many_done},
                          .left = &left};
    layer_submit_below(&upper.base, &child.request);
    assert_int_equal(left, 0);
    assert_true(status.count >= 1 && extents[0].length <= 6000);
    (void)io_file_close(file);
    client_close(&c);
    image_done(image);
    free(a);
}

/* ---- vectors ---- */

static void vectors_are_sliced(void **state)
{
    (void)state;
    uint8_t a[4] = {1, 2, 3, 4}, b[6] = {5, 6, 7, 8, 9, 10}, flat[10];
    struct iovec iov[3] = {{a, 4}, {NULL, 0}, {b, 6}};
    struct iovec part[3];
    uint64_t covered = 0;
    assert_int_equal(iov_slice(iov, 3, 3, 4, part, 3, &covered), 2);
    assert_int_equal(covered, 4);
    assert_ptr_equal(part[0].iov_base, a + 3);
    assert_int_equal(part[1].iov_len, 3);
    assert_int_equal(iov_slice(iov, 3, 0, 10, part, 1, &covered), 1);
    assert_int_equal(covered, 4);
    iov_to_buffer(iov, 3, 2, flat, 8);
    assert_memory_equal(flat, ((uint8_t[]){3, 4, 5, 6, 7, 8, 9, 10}), 8);
    iov_fill_zero(iov, 3, 3, 2);
    assert_int_equal(a[3] | b[0], 0);
    iov_from_buffer(iov, 3, 3, (uint8_t[]){40, 50}, 2);
    assert_int_equal(a[3], 40);
    assert_int_equal(b[0], 50);
    assert_int_equal(b[1], 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_are_checked),    cmocka_unit_test(images_are_checked),
        cmocka_unit_test(create_and_probe),        cmocka_unit_test(fua_is_a_flush_after_the_write),
        cmocka_unit_test(a_flush_error_is_sticky), cmocka_unit_test(every_waiter_learns_of_a_failed_flush),
        cmocka_unit_test(status_tells_holes),      cmocka_unit_test(below_is_clipped_with_zeros),
        cmocka_unit_test(vectors_are_sliced),
    };
    return RUN_ON_ENGINES(tests);
}
