// SPDX-License-Identifier: Apache-2.0
/*
 * image_reflink: the copy is one moment of an image that several queues write to. The kernel's reflink is taken for a slow
 * copy, so that a write which is let through meanwhile shows on every file system: writers put ascending numbers into the blocks
 * of their own region, one write at a time, so each region must hold a prefix, and no region may lack a write that had ended
 * before one that another region holds began.
 */
#include "fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096u
#define BLOCKS 64u /* of a region */
#define WRITERS 3u
#define SIZE (UINT64_C(1) * WRITERS * BLOCKS * BLOCK)
#define WRITES_MAX 200000u
#define COPIES 8u

static int reflink_error; /* what the file system says; 0 = it can */

int __wrap_ioctl(int fd, unsigned long request, uintptr_t argument);
int __real_ioctl(int fd, unsigned long request, uintptr_t argument);

/* In small pieces with pauses between them. */
int __wrap_ioctl(int fd, unsigned long request, uintptr_t argument)
{
    const struct timespec pause = {.tv_nsec = 100000};
    static uint8_t piece[BLOCK * 8];
    if (request != FICLONE)
        return __real_ioctl(fd, request, argument);
    if (reflink_error) {
        errno = reflink_error;
        return -1;
    }
    for (off_t at = 0; at < (off_t)SIZE; at += (off_t)sizeof(piece)) {
        assert_int_equal(pread((int)argument, piece, sizeof(piece), at), sizeof(piece));
        assert_int_equal(pwrite(fd, piece, sizeof(piece), at), sizeof(piece));
        (void)nanosleep(&pause, NULL);
    }
    return 0;
}

static const struct kind raw = {.name = "raw", .bottom = "raw"};
static const struct kind qcow2 = {.name = "qcow2", .bottom = "qcow2", .cluster_size = 65536};

static int copy_open(const char *name)
{
    int fd = open(scratch(name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    return fd;
}

/* ---- the load ---- */

struct writer {
    pthread_t thread;
    unsigned number;
    struct image *image;
    uint64_t started[WRITES_MAX + 1], ended[WRITES_MAX + 1]; /* moments; write 1 is the first */
    _Atomic unsigned count;                                  /* writes begun */
};

static _Atomic uint64_t moment = 1;
static _Atomic bool stop;
static struct writer writers[WRITERS];

static void *writer_main(void *arg)
{
    struct writer *writer = arg;
    struct client client;
    uint64_t block[BLOCK / 8];
    client_open(&client, writer->image);
    for (unsigned i = 1; !atomic_load(&stop) && i < WRITES_MAX; i++) {
        uint64_t place = writer->number * BLOCKS + i % BLOCKS;
        for (unsigned k = 0; k < BLOCK / 8; k++)
            block[k] = i;
        writer->started[i] = atomic_fetch_add(&moment, 1);
        atomic_store(&writer->count, i);
        assert_int_equal(client_op(&client, IMAGE_WRITE, place * BLOCK, block, BLOCK), 0);
        writer->ended[i] = atomic_fetch_add(&moment, 1);
    }
    client_close(&client);
    return NULL;
}

/* ---- the judgement ---- */

/* The highest number that the region holds; with it, it must hold all before. */
static unsigned prefix_of(const uint8_t *content, unsigned region)
{
    uint64_t held[BLOCKS], highest = 0;
    for (unsigned b = 0; b < BLOCKS; b++) {
        const uint8_t *block = content + ((size_t)region * BLOCKS + b) * BLOCK;
        memcpy(&held[b], block, 8);
        assert_memory_equal(block, block + 8, BLOCK - 8);
        highest = held[b] > highest ? held[b] : highest;
    }
    assert_true(highest < WRITES_MAX);
    for (uint64_t i = highest; i > 0 && highest - i < BLOCKS; i--) {
        if (held[i % BLOCKS] != i)
            fail_msg("region %u has write %llu, but not %llu", region, (unsigned long long)highest,
                     (unsigned long long)i);
    }
    return (unsigned)highest;
}

static void judge(const char *name, uint64_t begin, uint64_t end)
{
    uint64_t latest = begin;
    unsigned prefix[WRITERS];
    uint8_t *content = malloc(SIZE);
    int fd = open(scratch(name), O_RDONLY | O_CLOEXEC);
    assert_non_null(content);
    assert_int_equal(pread(fd, content, SIZE, 0), SIZE);
    (void)close(fd);
    for (unsigned i = 0; i < WRITERS; i++) {
        prefix[i] = prefix_of(content, i);
        uint64_t started = writers[i].started[prefix[i]];
        assert_true(started < end);
        latest = started > latest ? started : latest;
    }
    for (unsigned i = 0; i < WRITERS; i++) {
        uint64_t next = writers[i].ended[prefix[i] + 1]; /* 0: it never began */
        if (next && next < latest)
            fail_msg("%s: region %u lacks write %u, which had ended", name, i, prefix[i] + 1);
    }
    free(content);
}

static void one_moment(void **state)
{
    static const char *const names[COPIES] = {"c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"};
    uint64_t begins[COPIES], ends[COPIES];
    struct error err = ERROR_INIT;
    (void)state;
    reflink_error = 0;
    atomic_store(&stop, false);
    memset(writers, 0, sizeof(writers));
    layer_create(&raw, 0, SIZE);
    struct image *image = chain_open(&raw, 0, false);
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i].number = i;
        writers[i].image = image;
        assert_int_equal(pthread_create(&writers[i].thread, NULL, writer_main, &writers[i]), 0);
    }
    for (unsigned i = 0; i < COPIES; i++) {
        for (unsigned w = 0, before = atomic_load(&writers[0].count); w < 30000;
             w++) { /* something is written between */
            if (atomic_load(&writers[0].count) > before || before == WRITES_MAX - 1)
                break;
            (void)usleep(1000);
        }
        int fd = copy_open(names[i]);
        begins[i] = atomic_fetch_add(&moment, 1);
        if (image_reflink(image, fd, &err) < 0)
            fail_msg("%s", err.message);
        ends[i] = atomic_fetch_add(&moment, 1);
        (void)close(fd);
        assert_true(image_snapshot_pause(image) > 0);
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < WRITERS; i++)
        assert_int_equal(pthread_join(writers[i].thread, NULL), 0);
    assert_int_equal(image_close(image, NULL), 0);
    for (unsigned i = 0; i < COPIES; i++)
        judge(names[i], begins[i], ends[i]);
}

/* ---- refusals ---- */

static void still_serves(struct image *image)
{
    struct client client;
    uint8_t block[BLOCK] = {1};
    client_open(&client, image);
    assert_int_equal(client_op(&client, IMAGE_WRITE, 0, block, BLOCK), 0);
    assert_int_equal(client_op(&client, IMAGE_FLUSH, 0, NULL, 0), 0);
    client_close(&client);
}

static void a_file_system_that_cannot(void **state)
{
    static const int errors[] = {EOPNOTSUPP, EINVAL, ENOTTY, EXDEV};
    (void)state;
    layer_create(&raw, 0, SIZE);
    struct image *image = chain_open(&raw, 0, false);
    int fd = copy_open("copy");
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        struct error err = ERROR_INIT;
        reflink_error = errors[i];
        assert_int_equal(image_reflink(image, fd, &err), -EOPNOTSUPP);
        assert_string_equal(err.code, "reflink-not-possible");
        still_serves(image);
    }
    reflink_error = ENOSPC;
    assert_int_equal(image_reflink(image, fd, NULL), -ENOSPC);
    still_serves(image);
    reflink_error = 0;
    assert_int_equal(image_reflink(image, fd, NULL), 0);
    (void)close(fd);
    assert_int_equal(image_close(image, NULL), 0);
}

static void only_a_raw_image_alone(void **state)
{
    (void)state;
    int fd = copy_open("copy");
    reflink_error = 0;
    layer_create(&qcow2, 0, SIZE);
    struct image *image = chain_open(&qcow2, 0, false);
    assert_int_equal(image_reflink(image, fd, NULL), -EINVAL);
    assert_int_equal(image_close(image, NULL), 0);

    layer_create(&raw, 0, SIZE);
    image = chain_open(&raw, 0, true);
    assert_int_equal(image_reflink(image, fd, NULL), -EINVAL);
    assert_int_equal(image_close(image, NULL), 0);

    const struct kind over_raw = {.bottom = "raw", .cluster_size = 65536};
    layer_create(&over_raw, 1, SIZE);
    image = chain_open(&over_raw, 1, false);
    assert_int_equal(image_reflink(image, fd, NULL), -EINVAL);
    assert_int_equal(image_close(image, NULL), 0);
    (void)close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_moment),
        cmocka_unit_test(a_file_system_that_cannot),
        cmocka_unit_test(only_a_raw_image_alone),
    };
    return run_on_engines(tests, sizeof(tests) / sizeof(tests[0]));
}
