// SPDX-License-Identifier: Apache-2.0
/* Real loop devices, file systems and mounts; needs root. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "provisioner/node/freeze.h"
#include "provisioner/node/fuse_mount.h"
#include "provisioner/node/loop.h"
#include "provisioner/node/mkfs.h"
#include "provisioner/node/mount.h"

#define SIZE (64 << 20)

struct fixture {
    char dir[64], file[80], mnt[80], label[LOOP_LABEL_MAX], device[LOOP_DEVICE_MAX];
    int fd;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    (void)strcpy(f->dir, "/tmp/platter-device.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    (void)snprintf(f->file, sizeof(f->file), "%s/file", f->dir);
    (void)snprintf(f->mnt, sizeof(f->mnt), "%s/mnt", f->dir);
    (void)snprintf(f->label, sizeof(f->label), "platter-test/%s", f->dir + 5);
    f->fd = open(f->file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(ftruncate(f->fd, SIZE), 0);
    assert_int_equal(mkdir(f->mnt, 0755), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    int mounted = open(f->mnt, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (mounted >= 0)
        (void)ioctl(mounted, FITHAW, 0); /* of a test that failed while it was frozen */
    (void)close(mounted);
    (void)umount2(f->mnt, MNT_DETACH);
    char device[LOOP_DEVICE_MAX];
    if (loop_find(f->label, device, NULL) == 0)
        (void)loop_detach(device, f->label, NULL);
    (void)close(f->fd);
    char command[96];
    (void)snprintf(command, sizeof(command), "rm -rf --one-file-system %s", f->dir);
    int r = system(command);
    free(f);
    return r;
}

static void attach(struct fixture *f)
{
    struct error err = ERROR_INIT;
    if (loop_attach(f->fd, f->label, false, f->device, &err) < 0)
        fail_msg("%s", err.message);
}

static void a_loop_device_is_known_by_its_label(void **state)
{
    struct fixture *f = *state;
    struct error err = ERROR_INIT;
    char found[LOOP_DEVICE_MAX];
    attach(f);
    assert_int_equal(loop_find(f->label, found, &err), 0);
    assert_string_equal(found, f->device);
    assert_int_equal(loop_find("platter-test/none", found, &err), -ENOENT);
    assert_int_equal(loop_detach(f->device, "platter-test/none", &err), 0); /* not the one meant: left alone */
    int fd;
    assert_int_equal(loop_open(f->device, f->label, O_RDONLY, &fd, &err), 0);
    assert_int_equal(loop_detach(f->device, f->label, &err), -EBUSY);
    assert_string_equal(err.code, "target-busy");
    (void)close(fd);
    assert_int_equal(loop_find(f->label, found, &err), 0); /* closing did not unbind it */
    assert_int_equal(ftruncate(f->fd, 2 * SIZE), 0);
    assert_int_equal(loop_resize(f->device, f->label, &err), 0);
    assert_int_equal(loop_open(f->device, f->label, O_RDONLY, &fd, &err), 0);
    assert_int_equal(lseek(fd, 0, SEEK_END), 2 * SIZE);
    (void)close(fd);
    assert_int_equal(loop_detach(f->device, f->label, &err), 0);
    assert_int_equal(loop_detach(f->device, f->label, &err), 0);
    assert_int_equal(loop_find(f->label, found, &err), -ENOENT);
}

static void only_the_blank_is_blank(void **state)
{
    struct fixture *f = *state;
    static const struct {
        off_t offset;
        const char *bytes;
        size_t length;
    } signs[] = {
        {0, "QFI\xfb", 4},        {SIZE - 512, "conectix", 8}, {0, "LUKS\xba\xbe", 6}, {1048575, "x", 1},
        {SIZE - 1048576, "x", 1}, {65536 + 64, "_BHRfS_M", 8}, {510, "\x55\xaa", 2},   {SIZE - 1, "x", 1},
    };
    struct error err = ERROR_INIT;
    assert_int_equal(blank_check(f->fd, "x", &err), 0);
    for (size_t i = 0; i < sizeof(signs) / sizeof(signs[0]); i++) {
        static const char zeros[8];
        assert_int_equal(pwrite(f->fd, signs[i].bytes, signs[i].length, signs[i].offset), signs[i].length);
        assert_int_equal(blank_check(f->fd, "x", &err), -EINVAL);
        assert_string_equal(err.code, "not-blank");
        assert_int_equal(pwrite(f->fd, zeros, signs[i].length, signs[i].offset), signs[i].length);
    }
    assert_int_equal(blank_check(f->fd, "x", &err), 0);
    int write_only = open(f->file, O_WRONLY | O_CLOEXEC); /* what cannot be read is not blank */
    assert_int_equal(blank_check(write_only, "x", &err), -EBADF);
    (void)close(write_only);
    assert_int_equal(ftruncate(f->fd, 0), 0);
    assert_true(blank_check(f->fd, "x", &err) < 0);
}

static void formats_mounts_and_unmounts(void **state)
{
    struct fixture *f = *state;
    struct error err = ERROR_INIT;
    char type[24], path[128];
    struct stat st;
    attach(f);
    if (mkfs_format(f->device, "ext4", true, -1, &err) < 0)
        fail_msg("%s", err.message);
    int fd;
    assert_int_equal(loop_open(f->device, f->label, O_RDONLY, &fd, &err), 0);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(mkfs_probe(fd, type, sizeof(type), &err), 0);
    assert_string_equal(type, "ext4");
    assert_int_equal(blank_check(fd, "x", &err), -EINVAL);
    (void)close(fd);

    int target = open(f->mnt, O_PATH | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(mount_check_target(target, f->mnt, &err), 0);
    struct mount_request request = {.device = f->device,
                                    .filesystem = "ext4",
                                    .options = "noatime,commit=7",
                                    .restricted = true,
                                    .set_owner = true,
                                    .uid = 12345,
                                    .gid = 12345};
    if (mount_attach(&request, target, &err) < 0)
        fail_msg("%s", err.message);
    (void)close(target);
    assert_true(mount_is_at(f->mnt, st.st_rdev));
    assert_false(mount_is_at(f->dir, st.st_rdev));
    struct stat root;
    assert_int_equal(stat(f->mnt, &root), 0);
    assert_int_equal(root.st_uid, 12345);
    target = open(f->mnt, O_PATH | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(mount_check_target(target, f->mnt, &err), -EBUSY);
    (void)close(target);

    (void)snprintf(path, sizeof(path), "%s/file", f->mnt);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(mount_detach(f->mnt, st.st_rdev, false, &err), -EBUSY);
    assert_string_equal(err.code, "target-busy");
    (void)close(fd);
    assert_int_equal(mount_detach(f->mnt, st.st_rdev, false, &err), 0);
    assert_int_equal(mount_detach(f->mnt, st.st_rdev, false, &err), 0);
    assert_false(mount_is_at(f->mnt, st.st_rdev));
}

static void bad_mount_options_are_told(void **state)
{
    struct fixture *f = *state;
    struct error err = ERROR_INIT;
    attach(f);
    assert_int_equal(mkfs_format(f->device, "ext4", false, -1, &err), 0);
    struct mount_request request = {.device = f->device, .filesystem = "ext4", .options = "nonsense"};
    int target = open(f->mnt, O_PATH | O_DIRECTORY | O_CLOEXEC);
    assert_true(mount_attach(&request, target, &err) < 0);
    assert_non_null(strstr(err.message, "nonsense"));
    request = (struct mount_request){.device = f->device, .filesystem = "xfs"};
    assert_true(mount_attach(&request, target, &err) < 0);
    (void)close(target);
    assert_int_equal(mkfs_format(f->device, "ntfs", false, -1, &err), -EOPNOTSUPP);
}

static void grows_unmounted_ext4(void **state)
{
    struct fixture *f = *state;
    struct error err = ERROR_INIT;
    attach(f);
    assert_int_equal(mkfs_format(f->device, "ext4", true, -1, &err), 0);
    assert_int_equal(ftruncate(f->fd, 2 * SIZE), 0);
    assert_int_equal(loop_resize(f->device, f->label, &err), 0);
    if (mkfs_grow_unmounted(f->device, -1, &err) < 0)
        fail_msg("%s", err.message);
    assert_int_equal(mkfs_grow_unmounted(f->device, -1, &err), 0);
}

static void dead_fuse_mounts_are_replaced_and_removed(void **state)
{
    struct fixture *f = *state;
    struct error err = ERROR_INIT;
    char point[128];
    (void)snprintf(point, sizeof(point), "%s/point", f->dir);
    int fd;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(fuse_mount(point, &fd, &err), 0);
        (void)close(fd); /* nobody serves it: dead */
    }
    assert_int_equal(fuse_unmount(point, &err), 0);
    assert_int_equal(fuse_unmount(point, &err), 0);
    assert_int_equal(access(point, F_OK), -1);
}

/* What the device holds while its file system is frozen needs no journal. */
static void frozen_file_system_is_clean_on_its_device(void **state)
{
    struct fixture *f = *state;
    struct error err = ERROR_INIT;
    struct stat st;
    char command[256];
    attach(f);
    assert_int_equal(mkfs_format(f->device, "ext4", true, -1, &err), 0);
    assert_int_equal(stat(f->device, &st), 0);
    assert_int_equal(freeze_begin(f->mnt, st.st_rdev, &err), -ENOENT);
    int target = open(f->mnt, O_PATH | O_DIRECTORY | O_CLOEXEC);
    struct mount_request request = {.device = f->device, .filesystem = "ext4"};
    assert_int_equal(mount_attach(&request, target, &err), 0);
    (void)close(target);
    (void)snprintf(command, sizeof(command), "head -c 3M /dev/urandom >%s/data", f->mnt);
    assert_int_equal(system(command), 0);

    assert_int_equal(freeze_begin(f->mnt, st.st_rdev, &err), 0);
    assert_int_equal(freeze_begin(f->mnt, st.st_rdev, &err), 0);
    (void)snprintf(command, sizeof(command), "e2fsck -fn %s >/dev/null 2>&1", f->file);
    int clean = system(command);
    assert_int_equal(freeze_end(f->mnt, st.st_rdev, &err), 0);
    assert_int_equal(clean, 0);
    assert_int_equal(freeze_end(f->mnt, st.st_rdev, &err), 0);
    (void)snprintf(command, sizeof(command), "echo more >%s/more", f->mnt);
    assert_int_equal(system(command), 0);
    assert_int_equal(mount_detach(f->mnt, st.st_rdev, false, &err), 0);
    assert_int_equal(freeze_end(f->mnt, st.st_rdev, &err), 0);
}

int main(void)
{
    if (geteuid() != 0 || access("/dev/loop-control", F_OK) < 0 || access("/dev/fuse", F_OK) < 0) {
        (void)puts("SKIP: needs root, loop devices and FUSE");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_loop_device_is_known_by_its_label, setup, teardown),
        cmocka_unit_test_setup_teardown(only_the_blank_is_blank, setup, teardown),
        cmocka_unit_test_setup_teardown(formats_mounts_and_unmounts, setup, teardown),
        cmocka_unit_test_setup_teardown(bad_mount_options_are_told, setup, teardown),
        cmocka_unit_test_setup_teardown(grows_unmounted_ext4, setup, teardown),
        cmocka_unit_test_setup_teardown(frozen_file_system_is_clean_on_its_device, setup, teardown),
        cmocka_unit_test_setup_teardown(dead_fuse_mounts_are_replaced_and_removed, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
