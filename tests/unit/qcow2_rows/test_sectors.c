// SPDX-License-Identifier: Apache-2.0
/*
 * cloud-hypervisor #8012, #8051: direct I/O refused what was no whole block of the device. Images on loop devices with
 * blocks of 512 and of 4096 bytes, with clusters smaller and larger than these, under a load of any alignment. Skipped
 * where no loop device can be made.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/checked.h"
#include "model.h"
#include "rows.h"

/* A descriptor of a loop device that vanishes with its last user, or -1. */
static int loop_device(const char *path, uint32_t block)
{
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    int backing = open(path, O_RDWR | O_CLOEXEC);
    int fd = -1;
    for (int i = 0; control >= 0 && backing >= 0 && i < 100 && fd < 0; i++) {
        struct loop_config config = {.fd = (uint32_t)backing, .block_size = block, .info.lo_flags = LO_FLAGS_AUTOCLEAR};
        char name[32];
        (void)snprintf(name, sizeof(name), "/dev/loop%d", ioctl(control, LOOP_CTL_GET_FREE));
        fd = open(name, O_RDWR | O_CLOEXEC);
        if (fd < 0 || ioctl(fd, LOOP_CONFIGURE, &config) == 0)
            break;
        (void)close(fd);
        fd = -1;
        if (errno != EBUSY) /* somebody else took it first */
            break;
    }
    (void)close(control);
    (void)close(backing);
    return fd;
}

/* False where there is no device. */
static bool device_file(const struct rig *rig, uint32_t block, struct io_file **ret_file)
{
    struct io_file_options options = {.writable = true};
    int fd = loop_device(rig->path, block);
    if (fd < 0)
        return false;
    assert_int_equal(io_file_open(fd, &options, ret_file, NULL), 0);
    assert_true((*ret_file)->direct);
    assert_int_equal((*ret_file)->offset_align, block);
    return true;
}

static void load_on(struct rig *rig, uint32_t block, uint32_t cluster)
{
    struct model_options options = {
        .size = 4 * MIB - 512, .threads = 2, .depth = 4, .operations = 250, .max_length = 60000};
    struct image_layer layer = {.format = "qcow2"};
    struct image_create_options create = {.size = options.size, .cluster_size = cluster};
    (void)remove(rig->path);
    command_or_fail("truncate -s 32M '%s'", rig->path);
    if (!device_file(rig, block, &layer.file))
        skip();
    struct image *image = NULL;
    struct model *model = model_create(&options);
    assert_int_equal(image_create(layer.file, "qcow2", &create, NULL), 0);
    assert_int_equal(image_open(&layer, 1, &(struct image_options){0}, &image, NULL), 0);
    if (model_run(model, &model_image_target, image) || model_verify(model, &model_image_target, image))
        fail_msg("clusters of %u on blocks of %u", cluster, block);
    assert_int_equal(image_close(image, NULL), 0);
    assert_int_equal(qemu_check(rig->path), 0);
    model_destroy(model);
}

static void test_blocks_of_512_and_4096_bytes(void **state)
{
    static const uint32_t clusters[] = {512, 4096, 65536};
    for (unsigned i = 0; i < ARRAY_SIZE(clusters); i++) {
        load_on(*state, 512, clusters[i]);
        load_on(*state, 4096, clusters[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_blocks_of_512_and_4096_bytes, rig_setup, rig_teardown),
    };
    return have_qemu_img() ? cmocka_run_group_tests(tests, NULL, NULL) : SKIP;
}
