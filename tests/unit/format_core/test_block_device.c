// SPDX-License-Identifier: Apache-2.0
/* Raw images on a block device: a loop device over a scratch file. Skipped where none can be made. */
#include "fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "model.h"

#define SIZE (4u << 20)

/* A descriptor of a loop device that vanishes with its last user, or -1. */
static int loop_device(int backing)
{
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    for (int i = 0; control >= 0 && i < 100; i++) {
        struct loop_config config = {.fd = (uint32_t)backing, .info.lo_flags = LO_FLAGS_AUTOCLEAR};
        char path[32];
        int number = ioctl(control, LOOP_CTL_GET_FREE);
        if (number < 0)
            break;
        (void)snprintf(path, sizeof(path), "/dev/loop%d", number);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd < 0)
            break;
        if (ioctl(fd, LOOP_CONFIGURE, &config) == 0) {
            (void)close(control);
            return fd;
        }
        (void)close(fd);
        if (errno != EBUSY)
            break;
    }
    (void)close(control);
    return -1;
}

static struct image *device_image(void)
{
    struct io_file *backing = scratch_file(NULL, SIZE, true);
    int fd = loop_device(backing->fd);
    (void)io_file_close(backing);
    if (fd < 0)
        return NULL;
    struct io_file_options file_options = {.writable = true};
    struct image_options options = {0};
    struct image_layer layer = {.format = "raw"};
    struct image *image = NULL;
    assert_int_equal(io_file_open(fd, &file_options, &layer.file, NULL), 0);
    assert_true(layer.file->block_device);
    assert_true(layer.file->direct);
    assert_int_equal(image_open(&layer, 1, &options, &image, NULL), 0);
    return image;
}

static void load_on_a_device(void **state)
{
    (void)state;
    struct image *image = device_image();
    if (!image)
        skip();
    struct model_options options = {.size = SIZE, .threads = 2, .depth = 8, .operations = 400};
    struct model *model = model_create(&options);
    assert_int_equal(model_run(model, &model_image_target, image), 0);
    assert_int_equal(model_verify(model, &model_image_target, image), 0);
    (void)model_destroy(model);
    image_done(image);
}

static void a_device_keeps_its_size(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct image *image = device_image();
    if (!image)
        skip();
    struct image_geometry geometry;
    image_geometry(image, &geometry);
    assert_int_equal(geometry.size, SIZE);
    assert_int_equal(image_resize(image, 2 * SIZE, &err), -EOPNOTSUPP);
    assert_int_equal(image_resize(image, 2 * SIZE, NULL), -EOPNOTSUPP);
    assert_int_equal(image_resize(image, SIZE, &err), 0);
    image_done(image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(load_on_a_device),
        cmocka_unit_test(a_device_keeps_its_size),
    };
    return RUN_ON_ENGINES(tests);
}
