// SPDX-License-Identifier: Apache-2.0
#include "provisioner/node/loop.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/text.h"

#define LOOP_TRIES 64 /* LOOP_CTL_GET_FREE only shows a free device: another process may take it first */

/* The kernel answers LOOP_GET_STATUS64 with the backing file's attributes, which a FUSE file whose server has died does
 * not give. Its name remains: the label is then "platter/" and the file's own name, as fuse_mount gives it. */
static int loop_label_by_name(int fd, char label[LOOP_LABEL_MAX])
{
    struct stat st;
    char path[64], backing[4096];
    if (fstat(fd, &st) < 0)
        return -errno;
    (void)snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/loop/backing_file", major(st.st_rdev), minor(st.st_rdev));
    CLEANUP_CLOSE int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = file < 0 ? -1 : read(file, backing, sizeof(backing) - 1);
    if (n <= 0)
        return -ENXIO;
    backing[n] = 0;
    backing[strcspn(backing, "\n")] = 0;
    const char *slash = strrchr(backing, '/');
    (void)snprintf(label, LOOP_LABEL_MAX, "platter/%s", slash ? slash + 1 : backing);
    return 0;
}

static int loop_label(int fd, char label[LOOP_LABEL_MAX])
{
    struct loop_info64 info;
    if (ioctl(fd, LOOP_GET_STATUS64, &info) < 0)
        return errno == ENXIO ? -ENXIO : loop_label_by_name(fd, label);
    (void)snprintf(label, LOOP_LABEL_MAX, "%.*s", LO_NAME_SIZE - 1, (const char *)info.lo_file_name);
    return 0;
}

int loop_open(const char *device, const char *label, int flags, int *ret_fd, struct error *err)
{
    CLEANUP_CLOSE int fd = open(device, flags | O_CLOEXEC);
    if (fd < 0)
        return error_sys(err, errno, "open %s", device);
    char found[LOOP_LABEL_MAX];
    int r = loop_label(fd, found);
    if (r < 0 || strcmp(found, label) != 0)
        return error_set(err, ESTALE, "%s is not bound to %s", device, label);
    *ret_fd = steal_fd(&fd);
    return 0;
}

int loop_attach(int fd, const char *label, bool read_only, char ret_device[LOOP_DEVICE_MAX], struct error *err)
{
    struct loop_config config = {
        .fd = (uint32_t)fd,
        .block_size = 512,
        .info = {.lo_flags = LO_FLAGS_DIRECT_IO | (read_only ? LO_FLAGS_READ_ONLY : 0)},
    };
    (void)snprintf((char *)config.info.lo_file_name, LO_NAME_SIZE, "%s", label);
    CLEANUP_CLOSE int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    if (control < 0)
        return error_sys(err, errno, "open /dev/loop-control");
    for (int i = 0; i < LOOP_TRIES; i++) {
        int number = ioctl(control, LOOP_CTL_GET_FREE);
        if (number < 0)
            return error_sys(err, errno, "find a free loop device");
        char device[LOOP_DEVICE_MAX];
        (void)snprintf(device, sizeof(device), "/dev/loop%d", number);
        CLEANUP_CLOSE int loop = open(device, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
        if (loop < 0)
            return error_sys(err, errno, "open %s", device);
        if (ioctl(loop, LOOP_CONFIGURE, &config) == 0) {
            text_copy_bounded(ret_device, LOOP_DEVICE_MAX, device);
            return 0;
        }
        if (errno != EBUSY)
            return error_sys(err, errno, "bind %s", device);
    }
    return error_set(err, EBUSY, "no loop device stayed free");
}

/* LOOP_CLR_FD on a device that others have open only marks it for later, and says so by nothing but its state: then
 * the mark is taken away again. */
static int loop_clear(int fd)
{
    if (ioctl(fd, LOOP_CLR_FD) < 0)
        return errno == ENXIO ? 0 : -errno;
    struct loop_info64 info;
    if (ioctl(fd, LOOP_GET_STATUS64, &info) < 0)
        return errno == ENXIO ? 0 : -EBUSY; /* unbound as soon as `fd` is closed; or held, and its server dead */
    info.lo_flags &= ~(uint32_t)LO_FLAGS_AUTOCLEAR;
    (void)ioctl(fd, LOOP_SET_STATUS64, &info); /* failing: it was unbound meanwhile */
    return -EBUSY;
}

int loop_detach(const char *device, const char *label, struct error *err)
{
    for (int wait_ms = 1;; wait_ms *= 2) {
        CLEANUP_CLOSE int fd = -1;
        int r = loop_open(device, label, O_RDONLY, &fd, err);
        if (r < 0)
            return r == -ESTALE || r == -ENOENT || r == -ENXIO ? 0 : r;
        r = loop_clear(fd);
        if (r == 0)
            return 0;
        if (r != -EBUSY)
            return error_sys(err, r, "unbind %s", device);
        if (wait_ms > 512) {
            (void)error_set(err, EBUSY, "%s is still in use", device);
            return error_code(err, "target-busy");
        }
        struct timespec pause = {.tv_nsec = wait_ms * 1000000L};
        (void)nanosleep(&pause, NULL); /* only when it is busy: the kernel tells nobody when it no longer is */
    }
}

struct find {
    const char *label;
    char *device;
};

static int find_label(void *arg, const char *device, const char *label)
{
    const struct find *find = arg;
    if (strcmp(label, find->label) != 0)
        return 0;
    (void)snprintf(find->device, LOOP_DEVICE_MAX, "%s", device);
    return 1;
}

int loop_find(const char *label, char ret_device[LOOP_DEVICE_MAX], struct error *err)
{
    char device[LOOP_DEVICE_MAX];
    struct find find = {.label = label, .device = device};
    int r = loop_walk(label, find_label, &find, err);
    if (r < 0)
        return r;
    if (r == 0)
        return error_set(err, ENOENT, "no loop device is bound to %s", label);
    text_copy_bounded(ret_device, LOOP_DEVICE_MAX, device);
    return 0;
}

int loop_resize(const char *device, const char *label, struct error *err)
{
    CLEANUP_CLOSE int fd = -1;
    int r = loop_open(device, label, O_RDONLY, &fd, err);
    if (r < 0)
        return r;
    return ioctl(fd, LOOP_SET_CAPACITY) < 0 ? error_sys(err, errno, "resize %s", device) : 0;
}

/* Bound devices are those with a backing file in sysfs: opening all free ones too would be slow. */
int loop_walk(const char *prefix, loop_fn fn, void *arg, struct error *err)
{
    CLEANUP_CLOSEDIR DIR *dir = opendir("/sys/block");
    if (!dir)
        return error_sys(err, errno, "list /sys/block");
    struct dirent *entry;
    while ((entry = readdir(dir))) {
        char path[64], device[LOOP_DEVICE_MAX], label[LOOP_LABEL_MAX];
        if (strncmp(entry->d_name, "loop", 4) != 0 || strlen(entry->d_name) >= LOOP_DEVICE_MAX - strlen("/dev/"))
            continue;
        (void)snprintf(path, sizeof(path), "/sys/block/%s/loop", entry->d_name);
        if (access(path, F_OK) < 0)
            continue;
        (void)snprintf(device, sizeof(device), "/dev/%s", entry->d_name);
        CLEANUP_CLOSE int fd = open(device, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || loop_label(fd, label) < 0 || strncmp(label, prefix, strlen(prefix)) != 0)
            continue;
        int r = fn(arg, device, label);
        if (r)
            return r;
    }
    return 0;
}
