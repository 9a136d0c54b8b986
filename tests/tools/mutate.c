// SPDX-License-Identifier: Apache-2.0
/*
 * Changes an attached volume at random through one of its exports and keeps a byte-for-byte model beside it.
 *
 *   mutate --target vhost:SOCKET|nbd:SOCKET|file:PATH --model RAW [--seed N] [--operations N] [--read-only]
 *
 * First the whole target is compared with the model file (so an import is checked too), then random writes, zeroes and
 * flushes are done on both, with reads between, and at the end the whole is compared again. Exit status 0: all equal. What
 * differs is told with the seed. The model file ends as what an independent tool must find in the image.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <libnbd.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/fs.h>

#include "common/checked.h"
#include "tests/lib/vhost_client.h"

#define TRANSFER_MAX (256 * KIB)

/* One way to reach the volume. Lengths are at most TRANSFER_MAX for read and write, and keep `alignment`. */
struct target {
    int (*read)(struct target *target, void *buffer, size_t length, uint64_t offset);
    int (*write)(struct target *target, const void *buffer, size_t length, uint64_t offset);
    int (*zero)(struct target *target, uint64_t length, uint64_t offset);
    int (*flush)(struct target *target);
    uint64_t alignment;
    uint64_t size;
    int fd;
    bool device;
    struct nbd_handle *nbd;
    struct vhost_client *vhost;
};

// ---- a file or block device, O_DIRECT ----------------------------------------------------------------------------

static int file_read(struct target *t, void *buffer, size_t length, uint64_t offset)
{
    return pread(t->fd, buffer, length, (off_t)offset) == (ssize_t)length ? 0 : -EIO;
}

static int file_write(struct target *t, const void *buffer, size_t length, uint64_t offset)
{
    return pwrite(t->fd, buffer, length, (off_t)offset) == (ssize_t)length ? 0 : -EIO;
}

static int file_zero(struct target *t, uint64_t length, uint64_t offset)
{
    uint64_t range[2] = {offset, length};
    if (t->device)
        return ioctl(t->fd, BLKZEROOUT, range) < 0 ? -errno : 0;
    return fallocate(t->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length) < 0 ? -errno : 0;
}

static int file_flush(struct target *t)
{
    return fdatasync(t->fd) < 0 ? -errno : 0;
}

static int file_connect(struct target *t, const char *path)
{
    struct stat st;
    t->fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (t->fd < 0)
        t->fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (t->fd < 0 || fstat(t->fd, &st) < 0)
        return -errno;
    t->device = S_ISBLK(st.st_mode);
    t->size = (uint64_t)st.st_size;
    if (t->device && ioctl(t->fd, BLKGETSIZE64, &t->size) < 0)
        return -errno;
    t->read = file_read;
    t->write = file_write;
    t->zero = file_zero;
    t->flush = file_flush;
    t->alignment = 512;
    return 0;
}

// ---- NBD by libnbd -----------------------------------------------------------------------------------------------

static int nbd_result(int r)
{
    if (r == 0)
        return 0;
    (void)fprintf(stderr, "mutate: %s\n", nbd_get_error());
    return -EIO;
}

static int nbd_target_read(struct target *t, void *buffer, size_t length, uint64_t offset)
{
    return nbd_result(nbd_pread(t->nbd, buffer, length, offset, 0));
}

static int nbd_target_write(struct target *t, const void *buffer, size_t length, uint64_t offset)
{
    return nbd_result(nbd_pwrite(t->nbd, buffer, length, offset, 0));
}

static int nbd_target_zero(struct target *t, uint64_t length, uint64_t offset)
{
    return nbd_result(nbd_zero(t->nbd, length, offset, 0));
}

static int nbd_target_flush(struct target *t)
{
    return nbd_result(nbd_flush(t->nbd, 0));
}

static int nbd_connect(struct target *t, const char *path)
{
    t->nbd = nbd_create();
    if (!t->nbd || nbd_connect_unix(t->nbd, path) < 0)
        return nbd_result(-1);
    t->size = (uint64_t)nbd_get_size(t->nbd);
    t->read = nbd_target_read;
    t->write = nbd_target_write;
    t->zero = nbd_target_zero;
    t->flush = nbd_target_flush;
    t->alignment = 1;
    return 0;
}

// ---- vhost-user-blk by our own front-end -------------------------------------------------------------------------

static int vhost_do(struct target *t, uint32_t type, uint64_t offset, size_t length)
{
    int status = vhost_client_do(t->vhost, 0, type, offset / 512, length, 0);
    return status == VIRTIO_BLK_S_OK ? 0 : -EIO;
}

static int vhost_read(struct target *t, void *buffer, size_t length, uint64_t offset)
{
    int r = vhost_do(t, VIRTIO_BLK_T_IN, offset, length);
    if (r == 0)
        memcpy(buffer, vhost_client_buffer(t->vhost, 0, 0), length);
    return r;
}

static int vhost_write(struct target *t, const void *buffer, size_t length, uint64_t offset)
{
    memcpy(vhost_client_buffer(t->vhost, 0, 0), buffer, length);
    return vhost_do(t, VIRTIO_BLK_T_OUT, offset, length);
}

static int vhost_zero(struct target *t, uint64_t length, uint64_t offset)
{
    return vhost_do(t, VIRTIO_BLK_T_WRITE_ZEROES, offset, length);
}

static int vhost_flush(struct target *t)
{
    return vhost_do(t, VIRTIO_BLK_T_FLUSH, 0, 0);
}

static int vhost_connect(struct target *t, const char *path)
{
    const struct vhost_client_options options = {.socket = path, .depth = 1, .slot_bytes = TRANSFER_MAX};
    struct virtio_blk_config config;
    int r = vhost_client_connect(&options, &t->vhost);
    if (r == 0)
        r = vhost_client_config(t->vhost, &config);
    if (r < 0)
        return r;
    t->size = config.capacity * 512;
    t->read = vhost_read;
    t->write = vhost_write;
    t->zero = vhost_zero;
    t->flush = vhost_flush;
    t->alignment = 512;
    return 0;
}

// ---- the work ----------------------------------------------------------------------------------------------------

struct run {
    struct target target;
    uint8_t *model;
    uint8_t *buffer; /* TRANSFER_MAX bytes, page aligned */
    uint64_t seed, random;
};

static uint64_t random_next(struct run *run)
{
    run->random ^= run->random << 13;
    run->random ^= run->random >> 7;
    run->random ^= run->random << 17;
    return run->random;
}

static int compare(struct run *run, uint64_t offset, size_t length)
{
    int r = run->target.read(&run->target, run->buffer, length, offset);
    if (r < 0) {
        (void)fprintf(stderr, "mutate: read %zu at %" PRIu64 ": %s\n", length, offset, strerror(-r));
        return r;
    }
    if (memcmp(run->buffer, run->model + offset, length) == 0)
        return 0;
    size_t at = 0;
    while (run->buffer[at] == run->model[offset + at])
        at++;
    (void)fprintf(stderr, "mutate: differs at byte %" PRIu64 " (seed %" PRIu64 ")\n", offset + at, run->seed);
    return -EILSEQ;
}

static int compare_all(struct run *run)
{
    for (uint64_t at = 0; at < run->target.size; at += TRANSFER_MAX) {
        int r = compare(run, at, MIN(TRANSFER_MAX, run->target.size - at));
        if (r < 0)
            return r;
    }
    return 0;
}

static int write_random(struct run *run, uint64_t offset, size_t length)
{
    for (size_t i = 0; i < length; i += sizeof(uint64_t)) {
        uint64_t value = random_next(run);
        memcpy(run->buffer + i, &value, MIN(sizeof(value), length - i));
    }
    memcpy(run->model + offset, run->buffer, length);
    return run->target.write(&run->target, run->buffer, length, offset);
}

static int operate(struct run *run)
{
    struct target *t = &run->target;
    uint64_t largest = UINT64_C(1) << (9 + random_next(run) % 10); /* 512 .. 256 KiB: small ones as often as large */
    uint64_t length = align_down(1 + random_next(run) % MIN(largest, t->size), t->alignment);
    if (!length)
        length = t->alignment;
    uint64_t offset = align_down(random_next(run) % (t->size - length + 1), t->alignment);
    switch (random_next(run) % 8) {
    case 0:
        return t->flush(t);
    case 1:
        memset(run->model + offset, 0, length);
        return t->zero(t, length, offset);
    case 2:
    case 3:
        return compare(run, offset, length);
    default:
        return write_random(run, offset, length);
    }
}

static int work(struct run *run, uint64_t operations)
{
    int r = compare_all(run);
    for (uint64_t i = 0; r == 0 && i < operations; i++) {
        r = operate(run);
        if (r < 0)
            (void)fprintf(stderr, "mutate: operation %" PRIu64 " (seed %" PRIu64 "): %s\n", i, run->seed, strerror(-r));
    }
    if (r == 0 && operations)
        r = run->target.flush(&run->target);
    return r == 0 ? compare_all(run) : r;
}

static int load_model(struct run *run, const char *path)
{
    struct stat st;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return -errno;
    if ((uint64_t)st.st_size != run->target.size) {
        (void)fprintf(stderr, "mutate: the model has %jd bytes, the target %" PRIu64 "\n", (intmax_t)st.st_size,
                      run->target.size);
        return -EINVAL;
    }
    run->model = mmap(NULL, run->target.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    (void)close(fd);
    if (run->model == MAP_FAILED)
        return -errno;
    return posix_memalign((void **)&run->buffer, 4096, TRANSFER_MAX) ? -ENOMEM : 0;
}

static int target_connect(struct target *t, const char *spec)
{
    if (strncmp(spec, "vhost:", 6) == 0)
        return vhost_connect(t, spec + 6);
    if (strncmp(spec, "nbd:", 4) == 0)
        return nbd_connect(t, spec + 4);
    if (strncmp(spec, "file:", 5) == 0)
        return file_connect(t, spec + 5);
    return -EINVAL;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"target", required_argument, NULL, 't'},
                                            {"model", required_argument, NULL, 'm'},
                                            {"seed", required_argument, NULL, 's'},
                                            {"operations", required_argument, NULL, 'n'},
                                            {0}};
    const char *target = NULL, *model = NULL;
    struct run run = {.seed = (uint64_t)getpid() * 2654435761u};
    uint64_t operations = 300;
    int c;
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 't')
            target = optarg;
        else if (c == 'm')
            model = optarg;
        else if (c == 's')
            run.seed = strtoull(optarg, NULL, 0);
        else if (c == 'n')
            operations = strtoull(optarg, NULL, 0);
        else
            return 2;
    }
    if (!target || !model)
        return 2;
    run.random = run.seed | 1;
    int r = target_connect(&run.target, target);
    if (r == 0)
        r = load_model(&run, model);
    if (r == 0)
        r = work(&run, operations);
    if (r < 0)
        (void)fprintf(stderr, "mutate: %s: %s (seed %" PRIu64 ")\n", target, strerror(-r), run.seed);
    run.target.vhost = vhost_client_close(run.target.vhost);
    free(run.buffer);
    if (run.target.nbd)
        nbd_close(run.target.nbd);
    return r < 0;
}
