// SPDX-License-Identifier: Apache-2.0
// The input is a list of changes to a good qcow2 image: fields of the header, of the refcount table and blocks, of L1
// and L2 tables. The result is probed, opened for reading and for writing, used a little, and closed. No crash, no endless
// growth of the file; what cannot be opened must say why. It is also checked, which must not write, and repaired: what a repair
// calls clean must be usable and stay clean.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backends/format/image.h"
#include "common/bytes.h"
#include "common/checked.h"

#define BASES 4
#define CHANGE 12 // bytes: place, offset (2), form, value (8)
#define CHANGES_MAX 16
#define IO_MAX 65536u
#define GROWTH_MAX (200 * MIB) // a step of 64 MiB ahead, runs, tables

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t *bases[BASES];
static size_t base_lengths[BASES];
static struct io_loop *loop;
static uint8_t buffer[IO_MAX];

struct waited {
    struct image_request request; // first
    bool done;
};

static void request_done(struct image_request *request, int result)
{
    (void)result;
    ((struct waited *)request)->done = true;
}

static void run(struct image_queue *queue, enum image_op op, uint64_t offset, uint64_t length)
{
    struct iovec iov = {buffer, length};
    struct image_extent extents[8];
    struct image_status status = {.extents = extents, .max = 8};
    struct waited w = {.request = {.op = op,
                                   .flags = op == IMAGE_WRITE_ZEROES ? IMAGE_MAY_UNMAP : 0,
                                   .offset = offset,
                                   .length = length,
                                   .iov = &iov,
                                   .iovcnt = 1,
                                   .status = &status,
                                   .done = request_done}};
    image_submit(queue, &w.request);
    while (!w.done)
        if (io_loop_turn(loop, -1) < 0)
            abort();
}

static void use(struct image *image, bool writable)
{
    struct image_geometry geometry;
    struct image_queue *queue;
    if (image_queue_create(image, loop, &queue, NULL) < 0)
        return;
    image_geometry(image, &geometry);
    uint64_t size = align_down(MIN(geometry.size, 1 * MIB), 4096);
    for (uint64_t at = 0; at + IO_MAX <= size; at += IO_MAX) {
        run(queue, IMAGE_READ, at, IO_MAX);
        run(queue, IMAGE_STATUS, at, IO_MAX);
    }
    if (writable && size >= 1 * MIB) {
        run(queue, IMAGE_WRITE, 4096, 8192);
        run(queue, IMAGE_WRITE, 300 * KIB, IO_MAX);
        run(queue, IMAGE_FLUSH, 0, 0);
        run(queue, IMAGE_DISCARD, 4096, 128 * KIB);
        run(queue, IMAGE_WRITE_ZEROES, 200 * KIB, IO_MAX);
        run(queue, IMAGE_FLUSH, 0, 0);
        run(queue, IMAGE_WRITE, 0, IO_MAX);
        run(queue, IMAGE_READ, 0, IO_MAX);
    }
    (void)image_queue_destroy(queue);
}

static struct io_file *memory_file(const uint8_t *bytes, size_t length)
{
    struct io_file *file;
    struct io_file_options options = {.writable = true};
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (fd < 0 || (length && pwrite(fd, bytes, length, 0) != (ssize_t)length) ||
        io_file_open(fd, &options, &file, NULL) < 0)
        abort();
    return file;
}

static void try_open(const uint8_t *bytes, size_t length, bool writable)
{
    struct error err = ERROR_INIT;
    struct image *image;
    uint64_t after = 0;
    struct image_layer layer = {.format = "qcow2", .file = memory_file(bytes, length)};
    struct image_options options = {.read_only = !writable};
    int r = image_open(&layer, 1, &options, &image, &err);
    if (r < 0) {
        if (!err.message[0] || err.errnum != -r)
            abort();
        (void)io_file_close(layer.file);
        return;
    }
    use(image, writable);
    if (writable)
        (void)image_resize(image, 8 * MIB, NULL);
    if (io_file_length(layer.file, &after) == 0 && after > length + GROWTH_MAX)
        abort();
    (void)image_close(image, &err);
}

static uint64_t errors_of(const struct image_check *k)
{
    return k->low_counts + k->copied_flags + k->bad_entries + k->double_use;
}

static int check(struct io_file *file, bool repair, size_t memory, struct image_check *ret)
{
    struct image_check_options options = {.repair = repair, .memory_bytes = memory};
    struct error err = ERROR_INIT;
    int r = image_check(file, "qcow2", &options, ret, &err);
    if (r < 0 && (!err.message[0] || err.errnum != -r))
        abort();
    return r;
}

static bool same_bytes(struct io_file *file, const uint8_t *bytes, size_t length)
{
    uint64_t now;
    uint8_t *copy = malloc(length + 1);
    bool same = copy && io_file_length(file, &now) == 0 && now == length && io_file_read(file, copy, length, 0) == 0 &&
                memcmp(copy, bytes, length) == 0;
    free(copy);
    return same;
}

// A clean image is one that can be used and has no errors afterwards. Shared data that lost its other user keeps a "copied"
// bit that is off: that costs a copy, nothing else. A free of what is shared may leave a leak.
static void use_repaired(struct io_file *file)
{
    struct image *image;
    struct image_check found;
    struct io_file *again;
    int fd = dup(file->fd);
    struct image_layer layer = {.format = "qcow2", .file = file};
    if (fd < 0)
        abort();
    if (image_open(&layer, 1, &(struct image_options){0}, &image, NULL) < 0) { // names a file below, for one
        (void)io_file_close(file);
        (void)close(fd);
        return;
    }
    use(image, true);
    if (image_close(image, NULL) < 0 ||
        io_file_open(fd, &(struct io_file_options){.writable = true}, &again, NULL) < 0 ||
        check(again, false, 0, &found) < 0 || errors_of(&found) - found.copied_flags > 0)
        abort();
    (void)io_file_close(again);
}

static void try_check(const uint8_t *bytes, size_t length, size_t memory)
{
    struct image_check found, little, after;
    uint64_t grown = 0;
    struct io_file *file = memory_file(bytes, length);
    int r = check(file, false, 0, &found);
    if (check(file, false, 4096, &little) != r || (r == 0 && memcmp(&found, &little, sizeof(found)) != 0) ||
        !same_bytes(file, bytes, length))
        abort();
    if (r == 0 && check(file, true, memory, &found) == 0) {
        if (check(file, false, 0, &after) < 0 ||
            errors_of(&after) + after.leaks + found.repaired > errors_of(&found) + found.leaks)
            abort();
        if (io_file_length(file, &grown) < 0 || grown > 2 * length + 16 * MIB)
            abort();
        if (errors_of(&after) + after.leaks == 0) {
            use_repaired(file);
            return;
        }
    }
    (void)io_file_close(file);
}

// A small image with data, zeroes and holes in it.
static void make_base(unsigned i)
{
    static const struct image_create_options options[BASES] = {
        {.size = 4 * MIB, .cluster_size = 4096},
        {.size = 4 * MIB, .cluster_size = 512, .refcount_bits = 64},
        {.size = 4 * MIB, .cluster_size = 16384, .extended_l2 = true, .refcount_bits = 1},
        {.size = 4 * MIB, .cluster_size = 4096, .version = 2},
    };
    struct image *image;
    uint64_t length;
    struct image_layer layer = {.format = "qcow2", .file = memory_file(NULL, 0)};
    if (image_create(layer.file, "qcow2", &options[i], NULL) < 0 ||
        image_open(&layer, 1, &(struct image_options){0}, &image, NULL) < 0)
        abort();
    memset(buffer, 0x5a, sizeof(buffer));
    use(image, true);
    int fd = dup(layer.file->fd);
    if (fd < 0 || image_close(image, NULL) < 0)
        abort();
    length = (uint64_t)lseek(fd, 0, SEEK_END);
    bases[i] = malloc(length);
    base_lengths[i] = length;
    if (!bases[i] || pread(fd, bases[i], length, 0) != (ssize_t)length)
        abort();
    (void)close(fd);
}

static void set_up(void)
{
    if (io_loop_create(&(struct io_loop_options){.engine = IO_ENGINE_THREADS}, &loop, NULL) < 0)
        abort();
    for (unsigned i = 0; i < BASES; i++)
        make_base(i);
}

// Where a change goes: mostly where numbers are that matter.
static uint64_t place(const uint8_t *image, size_t length, const uint8_t *change)
{
    uint64_t table = load_be64(image + 48);
    uint64_t l1 = load_be64(image + 40);
    uint64_t start = 0;
    uint64_t span = 128;
    switch (change[0] % 6) {
    case 0:
        break;
    case 1:
        span = 1024;
        break;
    case 2:
        start = table;
        break;
    case 3:
        start = table + 8 <= length ? load_be64(image + table) : 0;
        span = 512;
        break;
    case 4:
        start = l1;
        break;
    default:
        start = l1 + 8 <= length ? load_be64(image + l1) & UINT64_C(0x00fffffffffffe00) : 0;
        span = 512;
        break;
    }
    uint64_t at = start + load_be16(change + 1) % span;
    return change[3] & 0x80 ? align_down(at, 8) : at;
}

static void apply(uint8_t *image, size_t length, const uint8_t *change)
{
    static const unsigned widths[4] = {1, 2, 4, 8};
    uint64_t cluster = UINT64_C(1) << (load_be32(image + 20) & 31);
    uint64_t at = place(image, length, change);
    uint64_t value = load_be64(change + 4);
    unsigned width = widths[change[3] & 3];
    switch (change[3] >> 2 & 7) {
    case 0:
        break;
    case 1:
        value &= 0xff;
        break;
    case 2: // a place in the file
        value = value % (length / 512 + 2) * 512;
        break;
    case 3:
        value = value % 64 * cluster;
        break;
    case 4:
        value = (value % 64 * cluster) | UINT64_C(1) << 63;
        break;
    case 5:
        value |= UINT64_C(1) << 62;
        break;
    case 6:
        value = UINT64_MAX - (value & 0xfff);
        break;
    default:
        value = UINT64_C(1) << (value & 63);
        break;
    }
    for (unsigned i = 0; i < width && at < length && i < length - at; i++)
        image[at + i] = (uint8_t)(value >> (8 * (width - 1 - i)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!loop)
        set_up();
    if (size < 1 + CHANGE)
        return 0;
    size_t length = base_lengths[data[0] % BASES];
    uint8_t *image = malloc(length);
    if (!image)
        abort();
    memcpy(image, bases[data[0] % BASES], length);
    // The first byte also says how many changes: few get further than many.
    size_t changes = MIN((size - 1) / CHANGE, (size_t)1 + data[0] / BASES % CHANGES_MAX);
    for (size_t i = 0; i < changes; i++)
        apply(image, length, data + 1 + i * CHANGE);
    if (data[0] & 0x80)
        length = length * (1 + data[1] % 16) / 16;
    struct io_file *file = memory_file(image, length);
    struct image_info info;
    (void)image_probe(file, "qcow2", &info, NULL);
    (void)io_file_close(file);
    try_open(image, length, false);
    try_open(image, length, true);
    try_check(image, length, data[1] & 1 ? 4096 : 0);
    free(image);
    return 0;
}
