// SPDX-License-Identifier: Apache-2.0
/* The proof of blankness, and what libblkid sees. */
#include <blkid.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "provisioner/node/mkfs.h"

/* What libblkid does not know. Offsets from the start, or (from_end) back from the end. */
static const struct {
    const char *what;
    uint64_t offset;
    bool from_end;
    const char *magic;
    size_t length;
} magics[] = {
    {"a qcow2 image", 0, false, "QFI\xfb", 4},
    {"a VHD image", 0, false, "conectix", 8},
    {"a VHD image", 512, true, "conectix", 8},
    {"a VHDX image", 0, false, "vhdxfile", 8},
    {"a VMDK image", 0, false, "KDMV", 4},
    {"a LUKS header", 0, false, "LUKS\xba\xbe", 6},
    {"a LUKS header", 16384, false, "SKUL\xba\xbe", 6},
};

static void probe_free(blkid_probe *probe)
{
    if (*probe)
        blkid_free_probe(*probe);
}

static int not_blank(struct error *err, const char *name, const char *what)
{
    (void)error_set(err, EINVAL, "'%s' is not blank: %s", name, what);
    (void)error_hint(err, "platter formats only what provably holds nothing");
    return error_code(err, "not-blank");
}

static int read_whole(int fd, uint8_t *buffer, size_t length, uint64_t offset)
{
    while (length) {
        ssize_t n = pread(fd, buffer, length, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        buffer += n;
        length -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

static bool all_zero(const uint8_t *buffer, size_t length)
{
    return buffer[0] == 0 && memcmp(buffer, buffer + 1, length - 1) == 0;
}

static const char *find_magic(const uint8_t *head, const uint8_t *tail, size_t length)
{
    for (size_t i = 0; i < ARRAY_SIZE(magics); i++) {
        uint64_t offset = magics[i].from_end ? length - magics[i].offset : magics[i].offset;
        const uint8_t *part = magics[i].from_end ? tail : head;
        if (range_within(offset, magics[i].length, length) &&
            memcmp(part + offset, magics[i].magic, magics[i].length) == 0)
            return magics[i].what;
    }
    return NULL;
}

static int size_of(int fd, uint64_t *ret_size)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    *ret_size = (uint64_t)st.st_size;
    if (S_ISBLK(st.st_mode))
        return ioctl(fd, BLKGETSIZE64, ret_size) < 0 ? -errno : 0;
    return 0;
}

static int check_ends(int fd, const char *name, struct error *err)
{
    uint64_t size = 0;
    int r = size_of(fd, &size);
    if (r < 0 || size == 0)
        return error_sys(err, r < 0 ? r : EIO, "measure '%s'", name);
    size_t length = (size_t)MIN(size, MIB);
    CLEANUP_FREE uint8_t *head = calloc(1, length);
    CLEANUP_FREE uint8_t *tail = calloc(1, length);
    if (!head || !tail)
        return error_sys(err, ENOMEM, "look at '%s'", name);
    r = read_whole(fd, head, length, 0);
    if (r == 0)
        r = read_whole(fd, tail, length, size - length);
    if (r < 0)
        return error_sys(err, r, "'%s' cannot be read, so it is not formatted", name);
    const char *magic = find_magic(head, tail, length);
    if (magic)
        return not_blank(err, name, magic);
    if (!all_zero(head, length))
        return not_blank(err, name, "there is data in its first MiB");
    if (!all_zero(tail, length))
        return not_blank(err, name, "there is data in its last MiB");
    return 0;
}

/* 0 = something was found, 1 = nothing, -2 = ambiguous, other negative = cannot say. */
static int probe_run(blkid_probe probe, int fd)
{
    if (!probe || blkid_probe_set_device(probe, fd, 0, 0) < 0)
        return -1;
    (void)blkid_probe_enable_superblocks(probe, 1);
    (void)blkid_probe_set_superblocks_flags(probe, BLKID_SUBLKS_TYPE | BLKID_SUBLKS_USAGE);
    (void)blkid_probe_enable_partitions(probe, 1);
    return blkid_do_safeprobe(probe);
}

int blank_check(int fd, const char *name, struct error *err)
{
    int r = check_ends(fd, name, err);
    if (r < 0)
        return r;
    CLEANUP(probe_free) blkid_probe probe = blkid_new_probe();
    const char *type = NULL;
    switch (probe_run(probe, fd)) {
    case 1:
        return 0;
    case 0:
        if (blkid_probe_lookup_value(probe, "TYPE", &type, NULL) < 0)
            (void)blkid_probe_lookup_value(probe, "PTTYPE", &type, NULL);
        return not_blank(err, name, type ? type : "libblkid found something");
    case -2:
        return not_blank(err, name, "libblkid found more than one thing");
    default:
        return error_set(err, EIO, "libblkid cannot look at '%s', so it is not formatted", name);
    }
}

int blank_check_whole(int fd, const char *name, int cancel_fd, struct error *err)
{
    uint64_t size;
    CLEANUP_FREE uint8_t *part = malloc(MIB);
    int r = size_of(fd, &size);
    if (!part || r < 0)
        return error_sys(err, r < 0 ? r : ENOMEM, "look at '%s'", name);
    for (uint64_t at = 0; at < size; at += MIB) {
        struct pollfd cancel = {.fd = cancel_fd, .events = POLLIN};
        size_t length = (size_t)MIN(size - at, MIB);
        if (cancel_fd >= 0 && poll(&cancel, 1, 0) == 1)
            return error_set(err, ECANCELED, "looking whether '%s' is blank was cancelled", name);
        r = read_whole(fd, part, length, at);
        if (r < 0)
            return error_sys(err, r, "'%s' cannot be read, so it is not formatted", name);
        if (!all_zero(part, length))
            return not_blank(err, name, "there is data in it");
        (void)posix_fadvise(fd, (off_t)at, (off_t)length, POSIX_FADV_DONTNEED); /* only a hint */
    }
    return 0;
}

int mkfs_probe(int fd, char *ret_type, size_t size, struct error *err)
{
    CLEANUP(probe_free) blkid_probe probe = blkid_new_probe();
    const char *type = NULL;
    switch (probe_run(probe, fd)) {
    case 0:
        if (blkid_probe_lookup_value(probe, "TYPE", &type, NULL) == 0) {
            (void)snprintf(ret_type, size, "%s", type);
            return 0;
        }
        return error_set(err, ENOENT, "there is a partition table, not a file system");
    case 1:
        return error_set(err, ENOENT, "there is no file system");
    case -2:
        return not_blank(err, "the device", "libblkid found more than one thing");
    default:
        return error_set(err, EIO, "libblkid cannot look at the device");
    }
}
