// SPDX-License-Identifier: Apache-2.0
// The FUSE export against a kernel that we play: a socket that keeps message boundaries stands in for /dev/fuse.
// Every request, its refusals, what a kernel would never send, a successor, and the end of the connection.
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/checked.h"
#include "provisioner/blk/export.h"
#include "provisioner/blk/fuse_protocol.h"

#define SIZE (4 * MIB)

struct bed {
    struct image *image;
    struct export *export;
    int kernel; /* our end */
    uint64_t unique;
};

struct answer {
    struct fuse_out_header head;
    uint8_t body[FUSE_TRANSFER_MAX];
};

static struct answer answer;

static void open_image(struct bed *bed)
{
    struct error err = ERROR_INIT;
    char path[] = "/tmp/platter-fuse.XXXXXX";
    struct image_layer layer = {.format = "raw"};
    const struct io_file_options file_options = {.writable = true};
    const struct image_options image_options = {0};
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    (void)unlink(path);
    assert_int_equal(ftruncate(fd, SIZE), 0);
    assert_int_equal(io_file_open(fd, &file_options, &layer.file, &err), 0);
    assert_int_equal(image_open(&layer, 1, &image_options, &bed->image, &err), 0);
}

static void send_request(struct bed *bed, uint32_t opcode, const void *in, size_t in_size, const void *data,
                         size_t data_size)
{
    struct fuse_in_header head = {
        .len = (uint32_t)(sizeof(head) + in_size + data_size),
        .opcode = opcode,
        .unique = ++bed->unique,
        .nodeid = FUSE_ROOT_ID,
    };
    const struct iovec iov[] = {
        {&head, sizeof(head)},
        {(void *)(uintptr_t)in, in_size},
        {(void *)(uintptr_t)data, data_size},
    };
    assert_int_equal(writev(bed->kernel, iov, 3), (ssize_t)head.len);
}

/* Bytes of the answer's body. */
static size_t receive_answer(const struct bed *bed)
{
    ssize_t n = recv(bed->kernel, &answer, sizeof(answer), 0);
    assert_true(n >= (ssize_t)sizeof(answer.head));
    assert_int_equal(answer.head.len, n);
    return (size_t)n - sizeof(answer.head);
}

static int ask(struct bed *bed, uint32_t opcode, const void *in, size_t size)
{
    send_request(bed, opcode, in, size, NULL, 0);
    (void)receive_answer(bed);
    assert_true(answer.head.unique == bed->unique);
    return answer.head.error;
}

static int start(struct bed *bed, unsigned threads, bool read_only, bool resumed, struct error *err)
{
    const struct timeval limit = {.tv_sec = 30};
    const int bytes = 1 << 20;
    int pair[2];
    *bed = (struct bed){0};
    open_image(bed);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    for (unsigned i = 0; i < 2; i++)
        (void)setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
    bed->kernel = pair[0];
    (void)setsockopt(bed->kernel, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    if (!resumed) {
        struct fuse_init_in in = {
            .major = 7, .minor = 44, .max_readahead = 131072, .flags = UINT32_MAX, .flags2 = UINT32_MAX};
        send_request(bed, FUSE_INIT, &in, sizeof(in), NULL, 0);
    }
    const struct export_options options = {.name = "disk",
                                           .image = bed->image,
                                           .fd = pair[1],
                                           .queues = threads,
                                           .read_only = read_only,
                                           .resumed = resumed};
    int r = fuse_export_ops.start(&options, &bed->export, err);
    if (r < 0)
        (void)close(pair[1]);
    return r;
}

static void stop(struct bed *bed)
{
    struct error err = ERROR_INIT;
    if (bed->export)
        fuse_export_ops.stop(bed->export);
    (void)close(bed->kernel);
    assert_int_equal(image_close(bed->image, &err), 0);
}

static struct bed bed;

static int setup(void **state)
{
    struct error err = ERROR_INIT;
    (void)state;
    assert_int_equal(start(&bed, 2, false, false, &err), 0);
    assert_int_equal(receive_answer(&bed), sizeof(struct fuse_init_out));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    stop(&bed);
    return 0;
}

/* What a successor relies on. */
static void init(void **state)
{
    struct fuse_init_out out;
    (void)state;
    memcpy(&out, answer.body, sizeof(out));
    assert_int_equal(out.major, 7);
    assert_int_equal(out.max_write, 131072);
    assert_int_equal(out.max_pages, 32);
    assert_int_equal(out.max_background, 256);
    assert_int_equal(out.flags2, 1 << 7); /* HAS_RESEND */
    assert_true(out.flags & FUSE_ASYNC_DIO);
    assert_false(out.flags & FUSE_WRITEBACK_CACHE);
}

static void attributes(void **state)
{
    struct fuse_attr_out out;
    struct fuse_setattr_in set = {.valid = FATTR_SIZE, .size = SIZE};
    (void)state;
    assert_int_equal(ask(&bed, FUSE_GETATTR, &(struct fuse_getattr_in){0}, sizeof(struct fuse_getattr_in)), 0);
    memcpy(&out, answer.body, sizeof(out));
    assert_true(out.attr.size == SIZE && S_ISREG(out.attr.mode) && out.attr.ino == 1);
    assert_int_equal(ask(&bed, FUSE_SETATTR, &set, sizeof(set)), 0);
    set.size = 0;
    assert_int_equal(ask(&bed, FUSE_SETATTR, &set, sizeof(set)), -EPERM);
    set.valid = FATTR_MTIME_NOW | FATTR_MTIME;
    assert_int_equal(ask(&bed, FUSE_SETATTR, &set, sizeof(set)), 0);
    assert_int_equal(ask(&bed, FUSE_SETATTR, &set, 8), -EINVAL);
    assert_int_equal(ask(&bed, FUSE_STATFS, NULL, 0), 0);
}

static void open_flags(void **state)
{
    struct fuse_open_out out;
    (void)state;
    assert_int_equal(ask(&bed, FUSE_OPEN, &(struct fuse_open_in){.flags = O_RDWR}, sizeof(struct fuse_open_in)), 0);
    memcpy(&out, answer.body, sizeof(out));
    assert_int_equal(out.open_flags, FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES);
}

static int write_at(uint64_t offset, const void *data, uint32_t length)
{
    struct fuse_write_in in = {.offset = offset, .size = length};
    send_request(&bed, FUSE_WRITE, &in, sizeof(in), data, length);
    (void)receive_answer(&bed);
    return answer.head.error;
}

static size_t read_at(uint64_t offset, uint32_t length)
{
    struct fuse_read_in in = {.offset = offset, .size = length};
    send_request(&bed, FUSE_READ, &in, sizeof(in), NULL, 0);
    size_t n = receive_answer(&bed);
    assert_int_equal(answer.head.error, 0);
    return n;
}

/* Random writes, zeroes and reads against a copy in memory. */
static void data(void **state)
{
    static uint8_t model[SIZE];
    static uint8_t block[FUSE_TRANSFER_MAX];
    unsigned seed = (unsigned)time(NULL);
    (void)state;
    print_message("seed %u\n", seed);
    for (unsigned turn = 0; turn < 600; turn++) {
        uint32_t length = 1 + (uint32_t)rand_r(&seed) % (turn % 3 ? 8192 : FUSE_TRANSFER_MAX);
        uint64_t offset = (uint64_t)rand_r(&seed) % (SIZE - length);
        struct fuse_fallocate_in in = {.offset = offset, .length = length};
        switch (rand_r(&seed) % 4) {
        case 0:
            memset(block, rand_r(&seed), length);
            assert_int_equal(write_at(offset, block, length), 0);
            memcpy(model + offset, block, length);
            break;
        case 1:
            in.mode = FALLOC_FL_KEEP_SIZE | (turn % 2 ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
            assert_int_equal(ask(&bed, FUSE_FALLOCATE, &in, sizeof(in)), 0);
            memset(model + offset, 0, length);
            break;
        default:
            assert_int_equal(read_at(offset, length), length);
            assert_memory_equal(answer.body, model + offset, length);
        }
    }
    assert_int_equal(ask(&bed, FUSE_FSYNC, &(struct fuse_fsync_in){0}, sizeof(struct fuse_fsync_in)), 0);
}

static void edges(void **state)
{
    static const uint8_t block[4096];
    struct fuse_write_in lie = {.offset = 0, .size = 4096};
    struct fuse_read_in huge = {.size = UINT32_MAX};
    struct fuse_fallocate_in in = {.offset = SIZE - 1, .length = UINT64_MAX, .mode = FALLOC_FL_PUNCH_HOLE};
    (void)state;
    assert_int_equal(read_at(SIZE - 100, 4096), 100);
    assert_int_equal(read_at(SIZE, 4096), 0);
    assert_int_equal(read_at(UINT64_MAX, 4096), 0);
    assert_int_equal(ask(&bed, FUSE_READ, &huge, sizeof(huge)), -EINVAL);
    assert_int_equal(write_at(SIZE - 1, block, 2), -ENOSPC);
    assert_int_equal(write_at(UINT64_MAX, block, 2), -ENOSPC);
    send_request(&bed, FUSE_WRITE, &lie, sizeof(lie), block, 100);
    (void)receive_answer(&bed);
    assert_int_equal(answer.head.error, -EINVAL);
    assert_int_equal(ask(&bed, FUSE_WRITE, &lie, 8), -EINVAL);
    assert_int_equal(ask(&bed, FUSE_FALLOCATE, &in, sizeof(in)), 0); /* a hole may reach beyond the end */
    in.mode = FALLOC_FL_ZERO_RANGE;
    assert_int_equal(ask(&bed, FUSE_FALLOCATE, &in, sizeof(in)), -ENOSPC);
    in.mode = 0;
    assert_int_equal(ask(&bed, FUSE_FALLOCATE, &in, sizeof(in)), -EOPNOTSUPP);
    assert_int_equal(ask(&bed, FUSE_FALLOCATE, &in, 3), -EINVAL);
    assert_int_equal(ask(&bed, FUSE_LOOKUP, "name", 5), -ENOSYS);
    assert_int_equal(ask(&bed, FUSE_FLUSH, NULL, 0), -ENOSYS);
    assert_int_equal(ask(&bed, 4000000000u, NULL, 0), -ENOSYS);
}

/* No answer may come to these: the next answer is the next request's. */
static void unanswered(void **state)
{
    (void)state;
    send_request(&bed, FUSE_FORGET, &(struct fuse_forget_in){1}, sizeof(struct fuse_forget_in), NULL, 0);
    send_request(&bed, FUSE_INTERRUPT, &(struct fuse_interrupt_in){1}, sizeof(struct fuse_interrupt_in), NULL, 0);
    send_request(&bed, FUSE_BATCH_FORGET, NULL, 0, NULL, 0);
    assert_int_equal(send(bed.kernel, "short", 5, 0), 5);
    assert_int_equal(ask(&bed, FUSE_RELEASE, NULL, 0), 0);
}

/* More requests than all slots of both threads. */
static void deep(void **state)
{
    struct fuse_read_in in = {.size = 4096};
    uint64_t first = bed.unique + 1;
    bool seen[400] = {false};
    unsigned sent = 0;
    (void)state;
    for (unsigned received = 0; received < ARRAY_SIZE(seen); received++) {
        for (; sent < ARRAY_SIZE(seen) && sent < received + 160; sent++) {
            in.offset = sent * UINT64_C(4096);
            send_request(&bed, FUSE_READ, &in, sizeof(in), NULL, 0);
        }
        assert_int_equal(receive_answer(&bed), 4096);
        uint64_t which = answer.head.unique - first;
        assert_true(which < ARRAY_SIZE(seen) && !seen[which]);
        seen[which] = true;
    }
}

static void resized(void **state)
{
    struct error err = ERROR_INIT;
    struct fuse_notify_inval_inode_out notice;
    struct fuse_attr_out out;
    (void)state;
    assert_int_equal(image_resize(bed.image, 2 * SIZE, &err), 0);
    bed.export->ops->resized(bed.export, 2 * SIZE);
    assert_int_equal(receive_answer(&bed), sizeof(notice));
    memcpy(&notice, answer.body, sizeof(notice));
    assert_true(answer.head.unique == 0 && answer.head.error == FUSE_NOTIFY_INVAL_INODE);
    assert_true(notice.ino == 1 && notice.off < 0);
    assert_int_equal(ask(&bed, FUSE_GETATTR, NULL, 0), 0);
    memcpy(&out, answer.body, sizeof(out));
    assert_true(out.attr.size == 2 * SIZE);
    assert_int_equal(read_at(2 * SIZE - 4096, 8192), 4096);
}

static void successor(void **state)
{
    struct error err = ERROR_INIT;
    (void)state;
    assert_int_equal(start(&bed, 1, false, true, &err), 0);
    assert_int_equal(receive_answer(&bed), 0);
    assert_true(answer.head.unique == 0 && answer.head.error == FUSE_NOTIFICATION_RESEND);
    bed.unique = UINT64_C(1) << 63; /* how the kernel marks what it sends again */
    assert_int_equal(read_at(0, 4096), 4096);
    stop(&bed);
}

static void read_only(void **state)
{
    struct error err = ERROR_INIT;
    struct fuse_open_in open_in = {.flags = O_RDWR};
    static const uint8_t block[512];
    (void)state;
    assert_int_equal(start(&bed, 1, true, false, &err), 0);
    (void)receive_answer(&bed);
    assert_int_equal(ask(&bed, FUSE_OPEN, &open_in, sizeof(open_in)), -EROFS);
    assert_int_equal(write_at(0, block, sizeof(block)), -EROFS);
    open_in.flags = O_RDONLY;
    assert_int_equal(ask(&bed, FUSE_OPEN, &open_in, sizeof(open_in)), 0);
    stop(&bed);
}

/* Unmounted: the threads end quietly, and stop() still works. */
static void connection_ends(void **state)
{
    struct error err = ERROR_INIT;
    struct export_stats stats;
    (void)state;
    assert_int_equal(start(&bed, 2, false, false, &err), 0);
    (void)receive_answer(&bed);
    bed.export->ops->stats(bed.export, &stats);
    assert_int_equal(stats.clients, 1);
    (void)shutdown(bed.kernel, SHUT_RDWR);
    do {
        (void)usleep(1000);
        bed.export->ops->stats(bed.export, &stats);
    } while (stats.clients > 0);
    stop(&bed);
}

static void wrong_kernel(void **state)
{
    struct error err = ERROR_INIT;
    struct fuse_init_in in = {.major = 7, .minor = 12, .flags = 0};
    int pair[2];
    struct bed other = {0};
    (void)state;
    open_image(&other);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    other.kernel = pair[0];
    const struct export_options options = {.image = other.image, .fd = pair[1], .queues = 1};
    send_request(&other, FUSE_INIT, &in, 16, NULL, 0);
    assert_int_equal(fuse_export_ops.start(&options, &other.export, &err), -EOPNOTSUPP);
    send_request(&other, FUSE_GETATTR, &in, sizeof(in), NULL, 0);
    assert_int_equal(fuse_export_ops.start(&options, &other.export, &err), -EPROTO);
    (void)close(pair[1]);
    stop(&other);
}

int main(void)
{
    const struct CMUnitTest with_bed[] = {
        cmocka_unit_test(init),  cmocka_unit_test(attributes), cmocka_unit_test(open_flags), cmocka_unit_test(data),
        cmocka_unit_test(edges), cmocka_unit_test(unanswered), cmocka_unit_test(deep),       cmocka_unit_test(resized),
    };
    const struct CMUnitTest alone[] = {
        cmocka_unit_test(successor),
        cmocka_unit_test(read_only),
        cmocka_unit_test(connection_ends),
        cmocka_unit_test(wrong_kernel),
    };
    int failed = cmocka_run_group_tests(with_bed, setup, teardown);
    return failed + cmocka_run_group_tests(alone, NULL, NULL);
}
