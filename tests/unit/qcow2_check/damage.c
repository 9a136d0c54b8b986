// SPDX-License-Identifier: Apache-2.0
#include "damage.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/checked.h"

#define FIRST 16u /* clusters looked at from the first table on */
#define SECOND 4u /* and from the second */
#define MASK UINT64_C(0x00fffffffffffe00)
#define COPIED (UINT64_C(1) << 63)

const struct shape shapes[] = {
    {"v3", {.cluster_size = 65536}},
    {"v2-512", {.cluster_size = 512, .version = 2}},
    {"1-bit", {.cluster_size = 4096, .refcount_bits = 1}},
    {"2-bit", {.cluster_size = 512, .refcount_bits = 2}},
    {"extended", {.cluster_size = 16384, .extended_l2 = true, .refcount_bits = 64}},
};
const unsigned shapes_count = ARRAY_SIZE(shapes);

/* ---- images -------------------------------------------------------------------------------------------------- */

static unsigned width(const struct shape *s)
{
    return s->options.extended_l2 ? 16 : 8;
}

static uint64_t table_span(const struct shape *s)
{
    return (uint64_t)s->options.cluster_size / width(s) * s->options.cluster_size;
}

struct client {
    struct image_request request; /* first */
    struct io_loop *loop;
    struct image_queue *queue;
    struct image *image;
    bool waiting;
    int result;
};

static void client_done(struct image_request *request, int result)
{
    struct client *client = (struct client *)request;
    client->waiting = false;
    client->result = result;
}

static int client_do(struct client *c, enum image_op op, uint64_t offset, void *buffer, uint64_t length)
{
    struct iovec iov = {buffer, length};
    c->request = (struct image_request){
        .op = op, .offset = offset, .length = length, .iov = &iov, .iovcnt = 1, .done = client_done};
    c->waiting = true;
    image_submit(c->queue, &c->request);
    while (c->waiting)
        assert_true(io_loop_turn(c->loop, 1000) >= 0);
    return c->result;
}

static bool client_open(struct client *c, const char *path, bool read_only)
{
    struct image_layer layer = {"qcow2", file_open(path, !read_only)};
    *c = (struct client){0};
    if (image_open(&layer, 1, &(struct image_options){.read_only = read_only}, &c->image, NULL) < 0) {
        (void)io_file_close(layer.file);
        return false;
    }
    assert_int_equal(io_loop_create(&(struct io_loop_options){0}, &c->loop, NULL), 0);
    assert_int_equal(image_queue_create(c->image, c->loop, &c->queue, NULL), 0);
    return true;
}

static void client_close(struct client *c)
{
    (void)image_queue_destroy(c->queue);
    (void)io_loop_destroy(c->loop);
    assert_int_equal(image_close(c->image, NULL), 0);
}

static void write_clusters(struct client *c, const struct shape *s, uint64_t offset, unsigned count, int seed)
{
    uint8_t *buffer = malloc(s->options.cluster_size);
    for (unsigned i = 0; i < count; i++) {
        memset(buffer, seed + (int)i, s->options.cluster_size);
        assert_int_equal(
            client_do(c, IMAGE_WRITE, offset + (uint64_t)i * s->options.cluster_size, buffer, s->options.cluster_size),
            0);
    }
    free(buffer);
}

int memory_begin(void **state)
{
    if (!getenv("TMPDIR") && access("/dev/shm", W_OK) == 0)
        (void)setenv("TMPDIR", "/dev/shm", 1);
    return scratch_begin(state);
}

void shape_create(const struct shape *s, const char *path)
{
    struct image_create_options options = s->options;
    struct client c;
    options.size = table_span(s) + FIRST * options.cluster_size;
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    (void)close(fd);
    struct io_file *file = file_open(path, true);
    assert_int_equal(image_create(file, "qcow2", &options, NULL), 0);
    (void)io_file_close(file);
    assert_true(client_open(&c, path, false));
    write_clusters(&c, s, 0, 10, 1);
    write_clusters(&c, s, table_span(s), 2, 100);
    client_close(&c);
}

size_t shape_read_length(const struct shape *s)
{
    return (size_t)(FIRST + SECOND) * s->options.cluster_size;
}

uint8_t *shape_read(const struct shape *s, const char *path, bool *ret_failed)
{
    struct client c;
    uint8_t *content = malloc(shape_read_length(s));
    assert_non_null(content);
    *ret_failed = false;
    if (!client_open(&c, path, true)) {
        free(content);
        return NULL;
    }
    for (unsigned i = 0; i < FIRST + SECOND; i++) {
        uint8_t *part = content + (size_t)i * s->options.cluster_size;
        uint64_t offset = i < FIRST ? (uint64_t)i * s->options.cluster_size
                                    : table_span(s) + (uint64_t)(i - FIRST) * s->options.cluster_size;
        if (client_do(&c, IMAGE_READ, offset, part, s->options.cluster_size) < 0) {
            memset(part, 0, s->options.cluster_size);
            *ret_failed = true;
        }
    }
    client_close(&c);
    return content;
}

void shape_use(const struct shape *s, const char *path)
{
    struct client c;
    assert_true(client_open(&c, path, false));
    write_clusters(&c, s, 0, FIRST, 50);
    write_clusters(&c, s, table_span(s), SECOND, 70);
    client_close(&c);
}

/* ---- checking ------------------------------------------------------------------------------------------------ */

void check_file(const char *path, bool repair, size_t memory, struct io_seam *seam, struct image_check *ret_check)
{
    struct error err = ERROR_INIT;
    struct io_file *file = file_open(path, repair);
    if (seam)
        io_file_set_seam(file, seam);
    struct image_check_options options = {.repair = repair, .memory_bytes = memory};
    int r = image_check(file, "qcow2", &options, ret_check, &err);
    (void)io_file_close(file);
    if (r < 0)
        fail_msg("%s: %s", path, err.message);
}

uint64_t check_errors(const struct image_check *k)
{
    return k->low_counts + k->bad_entries + k->double_use;
}

bool check_clean(const struct image_check *k)
{
    return check_errors(k) + k->leaks + k->copied_flags == 0 && !k->dirty && !k->corrupt;
}

void damage_expected(const struct damage *damage, const struct shape *s, uint8_t *before, const uint8_t *read)
{
    if (damage->expect == EXPECT_TABLE_LOST)
        memset(before, 0, (size_t)FIRST * s->options.cluster_size);
    if (damage->expect == EXPECT_AS_READ) {
        assert_non_null(read);
        memcpy(before, read, shape_read_length(s));
    }
}

/* ---- damage -------------------------------------------------------------------------------------------------- */

uint64_t peek(const char *path, uint64_t offset)
{
    uint8_t bytes[8] = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(fd, bytes, 8, (off_t)offset), 8);
    (void)close(fd);
    return load_be64(bytes);
}

void poke(const char *path, uint64_t offset, uint64_t value)
{
    uint8_t bytes[8];
    store_be64(bytes, value);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_int_equal(pwrite(fd, bytes, 8, (off_t)offset), 8);
    (void)close(fd);
}

static uint64_t l1_at(const char *path)
{
    return peek(path, 40);
}

static uint64_t table_at(const char *path)
{
    return peek(path, 48);
}

static uint64_t entry_at(const struct shape *s, const char *path, unsigned index)
{
    return (peek(path, l1_at(path)) & MASK) + (uint64_t)index * width(s);
}

/* The count of the cluster at `offset` in the file, in the first block. */
static void set_count(const struct shape *s, const char *path, uint64_t offset, uint64_t value)
{
    unsigned bits = s->options.refcount_bits ? s->options.refcount_bits : 16;
    uint64_t first = offset / s->options.cluster_size * bits;
    uint64_t at = peek(path, table_at(path)) + first / 64 * 8;
    uint64_t mask = bits == 64 ? UINT64_MAX : (UINT64_C(1) << bits) - 1;
    /* Narrow counts begin at the low bits of each byte, wide ones are big endian. */
    unsigned in_word = (unsigned)(first % 64);
    unsigned shift = bits < 8 ? 56 - in_word / 8 * 8 + in_word % 8 : 64 - bits - in_word;
    poke(path, at, (peek(path, at) & ~(mask << shift)) | (value << shift));
}

static void plant_leak(const struct shape *s, const char *path)
{
    uint64_t offset = peek(path, entry_at(s, path, 5)) & MASK;
    poke(path, entry_at(s, path, 5), 0);
    if (s->options.extended_l2)
        poke(path, entry_at(s, path, 5) + 8, 0);
    assert_true(offset > 0);
}

static void plant_high(const struct shape *s, const char *path)
{
    set_count(s, path, peek(path, entry_at(s, path, 3)) & MASK, 2);
}

static void plant_low(const struct shape *s, const char *path)
{
    set_count(s, path, peek(path, entry_at(s, path, 3)) & MASK, 0);
    set_count(s, path, peek(path, l1_at(path)) & MASK, 0);
}

static void plant_no_block(const struct shape *s, const char *path)
{
    (void)s;
    poke(path, table_at(path), 0);
}

static void plant_block_nowhere(const struct shape *s, const char *path)
{
    (void)s;
    poke(path, table_at(path), UINT64_C(1) << 50);
}

static void plant_block_on_l2(const struct shape *s, const char *path)
{
    (void)s;
    poke(path, table_at(path), peek(path, l1_at(path) + 8) & MASK);
}

static void plant_block_twice(const struct shape *s, const char *path)
{
    (void)s;
    poke(path, table_at(path) + 8, peek(path, table_at(path)));
}

static void plant_table_nowhere(const struct shape *s, const char *path)
{
    (void)s;
    poke(path, 48, UINT64_C(1) << 50);
}

static void plant_table_on_data(const struct shape *s, const char *path)
{
    poke(path, 48, peek(path, entry_at(s, path, 2)) & MASK);
}

static void plant_copied_l2(const struct shape *s, const char *path)
{
    poke(path, entry_at(s, path, 4), peek(path, entry_at(s, path, 4)) & ~COPIED);
}

static void plant_copied_l1(const struct shape *s, const char *path)
{
    (void)s;
    poke(path, l1_at(path), peek(path, l1_at(path)) & ~COPIED);
}

static void plant_reserved_l2(const struct shape *s, const char *path)
{
    poke(path, entry_at(s, path, 4), peek(path, entry_at(s, path, 4)) | UINT64_C(1) << 58 | 4);
}

static void plant_reserved_l1(const struct shape *s, const char *path)
{
    (void)s;
    poke(path, l1_at(path), peek(path, l1_at(path)) | UINT64_C(1) << 58 | 1);
}

static void plant_data_nowhere(const struct shape *s, const char *path)
{
    poke(path, entry_at(s, path, 4), COPIED | UINT64_C(1) << 50);
}

static void plant_unaligned(const struct shape *s, const char *path)
{
    poke(path, entry_at(s, path, 4), peek(path, entry_at(s, path, 4)) | 512);
}

static void plant_compressed_nowhere(const struct shape *s, const char *path)
{
    poke(path, entry_at(s, path, 4), UINT64_C(1) << 62 | UINT64_C(1) << 40);
}

static void plant_l1_nowhere(const struct shape *s, const char *path)
{
    (void)s;
    poke(path, l1_at(path), COPIED | UINT64_C(1) << 50);
}

static void plant_l1_on_header(const struct shape *s, const char *path)
{
    (void)s;
    poke(path, l1_at(path), COPIED | l1_at(path));
}

static void plant_data_twice(const struct shape *s, const char *path)
{
    poke(path, entry_at(s, path, 4), peek(path, entry_at(s, path, 3)));
}

static void plant_data_often(const struct shape *s, const char *path)
{
    for (unsigned i = 4; i < 9; i++)
        poke(path, entry_at(s, path, i), peek(path, entry_at(s, path, 3)));
}

static void plant_data_on_l1(const struct shape *s, const char *path)
{
    poke(path, entry_at(s, path, 4), COPIED | l1_at(path));
}

static void plant_data_on_l2(const struct shape *s, const char *path)
{
    poke(path, entry_at(s, path, 4), COPIED | (peek(path, l1_at(path) + 8) & MASK));
}

static void plant_data_on_own_l2(const struct shape *s, const char *path)
{
    poke(path, entry_at(s, path, 4), COPIED | (peek(path, l1_at(path)) & MASK));
}

static void plant_data_on_block(const struct shape *s, const char *path)
{
    poke(path, entry_at(s, path, 4), COPIED | peek(path, table_at(path)));
}

static void plant_zero_flag(const struct shape *s, const char *path)
{
    poke(path, entry_at(s, path, 4), peek(path, entry_at(s, path, 4)) | 1);
}

static void plant_both_bits(const struct shape *s, const char *path)
{
    poke(path, entry_at(s, path, 4) + 8, peek(path, entry_at(s, path, 4) + 8) | UINT64_C(0xff) << 32);
}

static void plant_bits_without_cluster(const struct shape *s, const char *path)
{
    poke(path, entry_at(s, path, 4), 0);
}

/* ---- where it fits ------------------------------------------------------------------------------------------- */

static bool wide(const struct shape *s)
{
    return s->options.refcount_bits != 1;
}

static bool large(const struct shape *s)
{
    return s->options.cluster_size > 512;
}

static bool old(const struct shape *s)
{
    return s->options.version == 2;
}

static bool extended(const struct shape *s)
{
    return s->options.extended_l2;
}

#define COUNTER(name) offsetof(struct image_check, name)

const struct damage damages[] = {
    {"leak", plant_leak, COUNTER(leaks), EXPECT_AS_READ, NULL},
    {"count too high", plant_high, COUNTER(leaks), EXPECT_SAME, wide},
    {"count too low", plant_low, COUNTER(low_counts), EXPECT_SAME, NULL},
    {"no block", plant_no_block, COUNTER(low_counts), EXPECT_SAME, NULL},
    {"block nowhere", plant_block_nowhere, COUNTER(bad_entries), EXPECT_SAME, NULL},
    {"block on an L2 table", plant_block_on_l2, COUNTER(double_use), EXPECT_SAME, NULL},
    {"block twice", plant_block_twice, COUNTER(double_use), EXPECT_SAME, NULL},
    {"table nowhere", plant_table_nowhere, COUNTER(bad_entries), EXPECT_SAME, NULL},
    {"table on data", plant_table_on_data, COUNTER(double_use), EXPECT_SAME, NULL},
    {"copied in L2", plant_copied_l2, COUNTER(copied_flags), EXPECT_SAME, NULL},
    {"copied in L1", plant_copied_l1, COUNTER(copied_flags), EXPECT_SAME, NULL},
    {"reserved bits in L2", plant_reserved_l2, COUNTER(bad_entries), EXPECT_SAME, NULL},
    {"reserved bits in L1", plant_reserved_l1, COUNTER(bad_entries), EXPECT_SAME, NULL},
    {"data nowhere", plant_data_nowhere, COUNTER(bad_entries), EXPECT_AS_READ, NULL},
    {"data not aligned", plant_unaligned, COUNTER(bad_entries), EXPECT_AS_READ, large},
    {"compressed data nowhere", plant_compressed_nowhere, COUNTER(bad_entries), EXPECT_AS_READ, NULL},
    {"L2 table nowhere", plant_l1_nowhere, COUNTER(bad_entries), EXPECT_TABLE_LOST, NULL},
    {"L2 table on L1", plant_l1_on_header, COUNTER(bad_entries), EXPECT_TABLE_LOST, NULL},
    {"data twice", plant_data_twice, COUNTER(double_use), EXPECT_AS_READ, NULL},
    {"data six times", plant_data_often, COUNTER(double_use), EXPECT_AS_READ, NULL},
    {"data on L1", plant_data_on_l1, COUNTER(double_use), EXPECT_AS_READ, NULL},
    {"data on an L2 table", plant_data_on_l2, COUNTER(double_use), EXPECT_AS_READ, NULL},
    {"data on its own L2 table", plant_data_on_own_l2, COUNTER(double_use), EXPECT_AS_READ, NULL},
    {"data on a refcount block", plant_data_on_block, COUNTER(double_use), EXPECT_AS_READ, NULL},
    {"zero flag in version 2", plant_zero_flag, COUNTER(bad_entries), EXPECT_SAME, old},
    {"data and zero bits", plant_both_bits, COUNTER(bad_entries), EXPECT_SAME, extended},
    {"bits without a cluster", plant_bits_without_cluster, COUNTER(bad_entries), EXPECT_AS_READ, extended},
};
const unsigned damages_count = ARRAY_SIZE(damages);
