// SPDX-License-Identifier: Apache-2.0
// Requests and answers on the wire: pipelines, split transfers in both reply styles, refusals, stops under load.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "peer.h"

#define SIZE (64 * MIB)

static struct bed bed;
static unsigned seed;

static int setup(void **state)
{
    (void)state;
    seed = (unsigned)time(NULL);
    print_message("seed %u\n", seed);
    bed_open(&bed, SIZE, 2, false);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    bed_close(&bed);
    return 0;
}

static void fill(uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i + 4 <= length; i += 4)
        store_le32(bytes + i, (uint32_t)rand_r(&seed));
}

static void write_at(int fd, uint64_t offset, const void *bytes, uint32_t length)
{
    uint64_t cookie;
    peer_request(fd, NBD_CMD_WRITE, 0, 77, offset, length);
    peer_send(fd, bytes, length);
    assert_int_equal(peer_simple(fd, &cookie), 0);
    assert_int_equal(cookie, 77);
}

/* A structured read, whatever the chunks are. */
static void read_chunks(int fd, uint64_t offset, uint8_t *bytes, uint32_t length)
{
    struct peer_chunk chunk;
    uint32_t got = 0;
    peer_request(fd, NBD_CMD_READ, 0, 78, offset, length);
    do {
        uint8_t at[8];
        peer_chunk(fd, &chunk);
        assert_int_equal(chunk.cookie, 78);
        assert_int_equal(chunk.type, NBD_CHUNK_OFFSET_DATA);
        peer_receive(fd, at, sizeof(at));
        assert_true(range_within(load_be64(at) - offset, chunk.length - 8, length));
        peer_receive(fd, bytes + (load_be64(at) - offset), chunk.length - 8);
        got += chunk.length - 8;
    } while (!(chunk.flags & NBD_CHUNK_DONE));
    assert_int_equal(got, length);
}

static void read_simple(int fd, uint64_t offset, uint8_t *bytes, uint32_t length)
{
    uint64_t cookie;
    peer_request(fd, NBD_CMD_READ, 0, 79, offset, length);
    assert_int_equal(peer_simple(fd, &cookie), 0);
    peer_receive(fd, bytes, length);
}

static void large_transfers(void **state)
{
    static const uint32_t lengths[] = {1, 511, 4096, 65536, 1 << 20, (1 << 20) + 1, 5000000, 32 << 20};
    uint8_t *out = malloc(NBD_PAYLOAD_MAX);
    uint8_t *in = malloc(NBD_PAYLOAD_MAX);
    (void)state;
    int structured = peer_open(&bed, true);
    int simple = peer_open(&bed, false);
    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        uint64_t offset = (uint64_t)rand_r(&seed) % (SIZE - lengths[i]);
        fill(out, lengths[i]);
        write_at(i % 2 ? structured : simple, offset, out, lengths[i]);
        memset(in, 0, lengths[i]);
        read_chunks(structured, offset, in, lengths[i]);
        assert_memory_equal(in, out, lengths[i]);
        memset(in, 0, lengths[i]);
        read_simple(simple, offset, in, lengths[i]);
        assert_memory_equal(in, out, lengths[i]);
    }
    (void)close(structured);
    (void)close(simple);
    free(out);
    free(in);
}

/* Many requests before the first answer is read: more than there are slots, and more bytes than there is memory. */
static void deep_pipeline(void **state)
{
    enum { COUNT = 100, LENGTH = 16384 };
    static uint8_t blocks[COUNT][LENGTH];
    static uint8_t in[LENGTH];
    uint64_t cookie;
    bool seen[COUNT] = {false};
    (void)state;
    int fd = peer_open(&bed, false);
    for (unsigned i = 0; i < COUNT; i++) {
        fill(blocks[i], LENGTH);
        peer_request(fd, NBD_CMD_WRITE, i % 10 ? 0 : NBD_CMD_FUA, i, (uint64_t)i * LENGTH, LENGTH);
        peer_send(fd, blocks[i], LENGTH);
    }
    for (unsigned i = 0; i < COUNT; i++) {
        assert_int_equal(peer_simple(fd, &cookie), 0);
        assert_true(cookie < COUNT && !seen[cookie]);
        seen[cookie] = true;
    }
    for (unsigned i = 0; i < 3 * COUNT; i++)
        peer_request(fd, NBD_CMD_READ, 0, i % COUNT, (uint64_t)(i % COUNT) * LENGTH, LENGTH);
    for (unsigned i = 0; i < 3 * COUNT; i++) {
        assert_int_equal(peer_simple(fd, &cookie), 0);
        peer_receive(fd, in, LENGTH);
        assert_true(cookie < COUNT);
        assert_memory_equal(in, blocks[cookie], LENGTH);
    }
    (void)close(fd);
}

/* Requests cut into single bytes. */
static void trickle(void **state)
{
    uint8_t bytes[NBD_REQUEST_SIZE + 100];
    uint8_t in[100];
    uint64_t cookie;
    (void)state;
    int fd = peer_open(&bed, false);
    fill(bytes + NBD_REQUEST_SIZE, 100);
    store_be32(bytes, NBD_REQUEST_MAGIC);
    store_be16(bytes + 4, 0);
    store_be16(bytes + 6, NBD_CMD_WRITE);
    store_be64(bytes + 8, 5);
    store_be64(bytes + 16, 12345);
    store_be32(bytes + 24, 100);
    for (size_t i = 0; i < sizeof(bytes); i++)
        peer_send(fd, bytes + i, 1);
    assert_int_equal(peer_simple(fd, &cookie), 0);
    read_simple(fd, 12345, in, sizeof(in));
    assert_memory_equal(in, bytes + NBD_REQUEST_SIZE, sizeof(in));
    (void)close(fd);
}

static uint32_t ask(int fd, uint16_t type, uint16_t flags, uint64_t offset, uint32_t length)
{
    uint64_t cookie;
    peer_request(fd, type, flags, 9, offset, length);
    uint32_t error = peer_simple(fd, &cookie);
    assert_int_equal(cookie, 9);
    return error;
}

static void refusals(void **state)
{
    static uint8_t bytes[8192];
    uint64_t cookie;
    (void)state;
    int fd = peer_open(&bed, false);
    assert_int_equal(ask(fd, NBD_CMD_READ, 0, SIZE, 1), NBD_EINVAL);
    assert_int_equal(ask(fd, NBD_CMD_READ, 0, UINT64_MAX, 2), NBD_EINVAL);
    assert_int_equal(ask(fd, NBD_CMD_READ, 0, 0, NBD_PAYLOAD_MAX + 1), NBD_EINVAL);
    assert_int_equal(ask(fd, NBD_CMD_READ, 0, 0, UINT32_MAX), NBD_EINVAL);
    assert_int_equal(ask(fd, NBD_CMD_READ, NBD_CMD_DF, 0, 512), NBD_EINVAL); /* without structured replies */
    assert_int_equal(ask(fd, NBD_CMD_TRIM, 0, SIZE - 1, 2), NBD_EINVAL);
    assert_int_equal(ask(fd, NBD_CMD_WRITE_ZEROES, 0, SIZE - 1, 2), NBD_ENOSPC);
    assert_int_equal(ask(fd, NBD_CMD_WRITE_ZEROES, NBD_CMD_FAST_ZERO | NBD_CMD_NO_HOLE, 0, 4096), NBD_ENOTSUP);
    assert_int_equal(ask(fd, NBD_CMD_BLOCK_STATUS, 0, 0, 4096), NBD_EINVAL);
    assert_int_equal(ask(fd, 99, 0, 0, 4096), NBD_EINVAL);
    assert_int_equal(ask(fd, NBD_CMD_FLUSH, 1 << 14, 0, 0), NBD_EINVAL);
    peer_request(fd, NBD_CMD_WRITE, 0, 3, SIZE - 1, sizeof(bytes)); /* its data must still be taken off the wire */
    peer_send(fd, bytes, sizeof(bytes));
    assert_int_equal(peer_simple(fd, &cookie), NBD_ENOSPC);
    assert_int_equal(ask(fd, NBD_CMD_FLUSH, 0, 0, 0), 0);
    assert_int_equal(ask(fd, NBD_CMD_READ, 0, 100, 0), 0);
    assert_int_equal(ask(fd, NBD_CMD_CACHE, 0, 100, 4096), 0);
    assert_int_equal(ask(fd, NBD_CMD_TRIM, NBD_CMD_FUA, 0, 65536), 0);
    peer_request(fd, NBD_CMD_WRITE, 0, 3, 0, NBD_PAYLOAD_MAX + 1);
    peer_expect_end(fd);
    fd = peer_open(&bed, false);
    peer_send(fd, bytes, sizeof(bytes)); /* no request */
    peer_expect_end(fd);
}

static void structured_answers(void **state)
{
    struct peer_chunk chunk;
    uint8_t payload[64];
    (void)state;
    int fd = peer_open(&bed, true);
    peer_request(fd, NBD_CMD_READ, 0, 1, SIZE, 1);
    peer_chunk(fd, &chunk);
    assert_true(chunk.type == NBD_CHUNK_ERROR && chunk.flags == NBD_CHUNK_DONE && chunk.length == 6);
    peer_receive(fd, payload, 6);
    assert_int_equal(load_be32(payload), NBD_EINVAL);
    peer_request(fd, NBD_CMD_READ, NBD_CMD_DF, 2, 0, 2 << 20);
    peer_chunk(fd, &chunk);
    peer_receive(fd, payload, 6);
    assert_int_equal(load_be32(payload), NBD_EOVERFLOW);
    peer_request(fd, NBD_CMD_READ, 0, 3, 0, 0);
    peer_chunk(fd, &chunk);
    assert_true(chunk.type == NBD_CHUNK_NONE && chunk.flags == NBD_CHUNK_DONE && chunk.length == 0);
    assert_int_equal(ask(fd, NBD_CMD_WRITE_ZEROES, NBD_CMD_FUA, 0, SIZE), 0);
    peer_request(fd, NBD_CMD_BLOCK_STATUS, NBD_CMD_REQ_ONE, 4, 4096, SIZE - 4096);
    peer_chunk(fd, &chunk);
    assert_true(chunk.type == NBD_CHUNK_BLOCK_STATUS && chunk.length == 12);
    peer_receive(fd, payload, 12);
    assert_int_equal(load_be32(payload), 1);
    assert_true(load_be32(payload + 4) > 0 && load_be32(payload + 4) <= SIZE - 4096);
    (void)close(fd);
}

/* DISC behind requests: they are answered, then the connection ends. */
static void disconnect_in_order(void **state)
{
    uint64_t cookie;
    (void)state;
    int fd = peer_open(&bed, false);
    for (unsigned i = 0; i < 20; i++)
        peer_request(fd, NBD_CMD_FLUSH, 0, i, 0, 0);
    peer_request(fd, NBD_CMD_DISC, 0, 0, 0, 0);
    for (unsigned i = 0; i < 20; i++)
        assert_int_equal(peer_simple(fd, &cookie), 0);
    peer_expect_end(fd);
}

/* What is read on one connection after a flush on another. */
static void several_connections(void **state)
{
    uint8_t out[4096], in[4096];
    (void)state;
    int a = peer_open(&bed, false);
    int b = peer_open(&bed, false);
    for (unsigned i = 0; i < 50; i++) {
        fill(out, sizeof(out));
        write_at(a, i * 4096, out, sizeof(out));
        assert_int_equal(ask(b, NBD_CMD_FLUSH, 0, 0, 0), 0);
        read_simple(b, i * 4096, in, sizeof(in));
        assert_memory_equal(in, out, sizeof(out));
    }
    (void)close(a);
    (void)close(b);
}

static void grown_image(void **state)
{
    struct error err = ERROR_INIT;
    uint8_t byte;
    struct bed small;
    (void)state;
    bed_open(&small, 1 << 20, 1, false);
    int before = peer_open(&small, false);
    assert_int_equal(image_resize(small.image, 2 << 20, &err), 0);
    small.export->ops->resized(small.export, 2 << 20);
    small.size = 2 << 20;
    int after = peer_open(&small, false);
    read_simple(after, (2 << 20) - 1, &byte, 1);
    assert_int_equal(ask(before, NBD_CMD_READ, 0, 1 << 20, 1), NBD_EINVAL); /* it was told the old size */
    (void)close(before);
    (void)close(after);
    bed_close(&small);
}

static void read_only(void **state)
{
    static uint8_t bytes[512];
    uint64_t cookie;
    struct bed frozen;
    (void)state;
    bed_open(&frozen, 1 << 20, 1, true);
    int fd = peer_open(&frozen, false);
    peer_request(fd, NBD_CMD_WRITE, 0, 1, 0, sizeof(bytes));
    peer_send(fd, bytes, sizeof(bytes));
    assert_int_equal(peer_simple(fd, &cookie), NBD_EPERM);
    assert_int_equal(ask(fd, NBD_CMD_TRIM, 0, 0, 4096), NBD_EPERM);
    assert_int_equal(ask(fd, NBD_CMD_WRITE_ZEROES, 0, 0, 4096), NBD_EPERM);
    read_simple(fd, 0, bytes, sizeof(bytes));
    assert_int_equal(ask(fd, NBD_CMD_FLUSH, 0, 0, 0), 0);
    (void)close(fd);
    bed_close(&frozen);
}

/* stop() with one client idle, one in its handshake, one in the middle of a write, and one that asked for more than
 * it ever reads. */
static void stop_under_load(void **state)
{
    static const uint8_t bytes[1000];
    struct bed busy;
    (void)state;
    bed_open(&busy, SIZE, 2, false);
    int idle = peer_open(&busy, false);
    int young = peer_connect(&busy);
    int writing = peer_open(&busy, false);
    int deaf = peer_open(&busy, true);
    peer_request(writing, NBD_CMD_WRITE, 0, 1, 0, 8 << 20);
    peer_send(writing, bytes, sizeof(bytes));
    for (unsigned i = 0; i < 64; i++)
        peer_request(deaf, NBD_CMD_READ, 0, i, 0, 4 << 20);
    bed_close(&busy);
    peer_expect_end(idle);
    peer_expect_end(young);
    peer_expect_end(writing);
    (void)close(deaf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(large_transfers),
        cmocka_unit_test(deep_pipeline),
        cmocka_unit_test(trickle),
        cmocka_unit_test(refusals),
        cmocka_unit_test(structured_answers),
        cmocka_unit_test(disconnect_in_order),
        cmocka_unit_test(several_connections),
        cmocka_unit_test(grown_image),
        cmocka_unit_test(read_only),
        cmocka_unit_test(stop_under_load),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
