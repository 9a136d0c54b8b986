// SPDX-License-Identifier: Apache-2.0
// The handshake: every option's answers, and clients that break its rules.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/bytes.h"
#include "peer.h"

static struct bed bed;
static uint8_t data[65536];
static size_t length;

static int setup(void **state)
{
    (void)state;
    bed_open(&bed, 1 << 20, 1, false);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    bed_close(&bed);
    return 0;
}

static uint32_t ask(int fd, uint32_t option, const void *bytes, size_t size)
{
    peer_option(fd, option, bytes, size);
    return peer_option_reply(fd, option, data, sizeof(data), &length);
}

static void list(void **state)
{
    (void)state;
    int fd = peer_connect(&bed);
    assert_int_equal(ask(fd, NBD_OPT_LIST, NULL, 0), NBD_REP_SERVER);
    assert_int_equal(length, 8);
    assert_memory_equal(data, "\0\0\0\4disk", 8);
    assert_int_equal(peer_option_reply(fd, NBD_OPT_LIST, data, sizeof(data), &length), NBD_REP_ACK);
    assert_int_equal(ask(fd, NBD_OPT_LIST, "x", 1), NBD_REP_ERR_INVALID);
    assert_int_equal(ask(fd, NBD_OPT_ABORT, NULL, 0), NBD_REP_ACK);
    peer_expect_end(fd);
}

static void unknown_options(void **state)
{
    (void)state;
    int fd = peer_connect(&bed);
    assert_int_equal(ask(fd, NBD_OPT_STARTTLS, NULL, 0), NBD_REP_ERR_UNSUP);
    assert_int_equal(ask(fd, 4711, "hello", 5), NBD_REP_ERR_UNSUP);
    assert_int_equal(ask(fd, UINT32_MAX, data, 16384), NBD_REP_ERR_UNSUP);
    assert_int_equal(ask(fd, NBD_OPT_GO, data, 16385), NBD_REP_ERR_TOO_BIG);
    assert_int_equal(ask(fd, NBD_OPT_LIST, NULL, 0), NBD_REP_SERVER); /* still in step */
    (void)close(fd);
}

static void info(void **state)
{
    static const uint8_t all[] = {0, 0, 0, 4, 'd', 'i', 's', 'k', 0, 5, 0, 1, 0, 2, 0, 3, 0, 3, 0, 99};
    uint32_t seen = 0;
    uint32_t type;
    (void)state;
    int fd = peer_connect(&bed);
    peer_option(fd, NBD_OPT_INFO, all, sizeof(all));
    while ((type = peer_option_reply(fd, NBD_OPT_INFO, data, sizeof(data), &length)) == NBD_REP_INFO) {
        uint16_t kind = load_be16(data);
        assert_true(kind < 4 && !(seen & 1u << kind));
        seen |= 1u << kind;
        if (kind == NBD_INFO_NAME)
            assert_memory_equal(data + 2, "disk", length - 2);
        if (kind == NBD_INFO_BLOCK_SIZE)
            assert_true(load_be32(data + 2) == 1 && load_be32(data + 10) == NBD_PAYLOAD_MAX);
    }
    assert_int_equal(type, NBD_REP_ACK);
    assert_int_equal(seen, 15);
    (void)close(fd);
}

static void wrong_names_and_lengths(void **state)
{
    (void)state;
    int fd = peer_connect(&bed);
    assert_int_equal(ask(fd, NBD_OPT_GO, "\0\0\0\5disks\0\0", 11), NBD_REP_ERR_UNKNOWN);
    assert_int_equal(ask(fd, NBD_OPT_GO, "\0\0\0\7disks\0\0", 11), NBD_REP_ERR_INVALID);
    assert_int_equal(ask(fd, NBD_OPT_GO,
                         "\xff\xff\xff\xff"
                         "disks\0\0",
                         11),
                     NBD_REP_ERR_INVALID);
    assert_int_equal(ask(fd, NBD_OPT_GO, "\0\0\0\4disk\0\1", 10), NBD_REP_ERR_INVALID);
    assert_int_equal(ask(fd, NBD_OPT_GO, "\0\0\0\4disk\xff\xff", 10), NBD_REP_ERR_INVALID);
    assert_int_equal(ask(fd, NBD_OPT_GO, "", 0), NBD_REP_ERR_INVALID);
    assert_int_equal(ask(fd, NBD_OPT_INFO, "\0\0\0", 3), NBD_REP_ERR_INVALID);
    memset(data, 'n', 8192);
    store_be32(data, 5000);
    assert_int_equal(ask(fd, NBD_OPT_GO, data, 5006), NBD_REP_ERR_INVALID);
    (void)close(fd);
}

static void meta_contexts(void **state)
{
    static const char query[] = "\0\0\0\4disk\0\0\0\1\0\0\0\17base:allocation";
    static const char foreign[] = "\0\0\0\4disk\0\0\0\1\0\0\0\6qemu:x";
    static const char many[] = "\0\0\0\4disk\xff\xff\xff\xff\0\0\0\0";
    (void)state;
    int fd = peer_connect(&bed);
    assert_int_equal(ask(fd, NBD_OPT_SET_META_CONTEXT, query, sizeof(query) - 1), NBD_REP_ERR_INVALID);
    assert_int_equal(ask(fd, NBD_OPT_STRUCTURED_REPLY, "x", 1), NBD_REP_ERR_INVALID);
    assert_int_equal(ask(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0), NBD_REP_ACK);
    assert_int_equal(ask(fd, NBD_OPT_LIST_META_CONTEXT, "\0\0\0\0\0\0\0\0", 8), NBD_REP_META_CONTEXT);
    assert_memory_equal(data + 4, "base:allocation", 15);
    assert_int_equal(peer_option_reply(fd, NBD_OPT_LIST_META_CONTEXT, data, sizeof(data), &length), NBD_REP_ACK);
    assert_int_equal(ask(fd, NBD_OPT_SET_META_CONTEXT, foreign, sizeof(foreign) - 1), NBD_REP_ACK);
    assert_int_equal(ask(fd, NBD_OPT_SET_META_CONTEXT, many, sizeof(many) - 1), NBD_REP_ERR_INVALID);
    assert_int_equal(ask(fd, NBD_OPT_SET_META_CONTEXT, query, sizeof(query) - 1), NBD_REP_META_CONTEXT);
    assert_int_equal(length, 19);
    assert_int_equal(peer_option_reply(fd, NBD_OPT_SET_META_CONTEXT, data, sizeof(data), &length), NBD_REP_ACK);
    assert_int_equal(ask(fd, NBD_OPT_SET_META_CONTEXT, query, 12), NBD_REP_ERR_INVALID);
    (void)close(fd);
}

/* A context counts for the name it was negotiated for. */
static void meta_context_of_another_name(void **state)
{
    static const char query[] = "\0\0\0\4disk\0\0\0\1\0\0\0\17base:allocation";
    struct peer_chunk chunk;
    uint32_t type;
    (void)state;
    int fd = peer_connect(&bed);
    assert_int_equal(ask(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0), NBD_REP_ACK);
    assert_int_equal(ask(fd, NBD_OPT_SET_META_CONTEXT, query, sizeof(query) - 1), NBD_REP_META_CONTEXT);
    assert_int_equal(peer_option_reply(fd, NBD_OPT_SET_META_CONTEXT, data, sizeof(data), &length), NBD_REP_ACK);
    peer_option(fd, NBD_OPT_GO, "\0\0\0\0\0\0", 6);
    while ((type = peer_option_reply(fd, NBD_OPT_GO, data, sizeof(data), &length)) == NBD_REP_INFO)
        ;
    assert_int_equal(type, NBD_REP_ACK);
    peer_request(fd, NBD_CMD_BLOCK_STATUS, 0, 1, 0, 4096);
    peer_chunk(fd, &chunk);
    assert_int_equal(chunk.type, NBD_CHUNK_ERROR);
    (void)close(fd);
}

static void export_name(void **state)
{
    (void)state;
    int fd = peer_connect(&bed);
    peer_option(fd, NBD_OPT_EXPORT_NAME, "disk", 4);
    peer_receive(fd, data, 10);
    assert_true(load_be64(data) == bed.size);
    assert_true(load_be16(data + 8) & NBD_HAS_FLAGS);
    (void)close(fd);
    fd = peer_connect(&bed);
    peer_option(fd, NBD_OPT_EXPORT_NAME, "none", 4);
    peer_expect_end(fd);
}

static void broken_rules(void **state)
{
    (void)state;
    int fd = peer_connect(&bed);
    peer_send(fd, "GET / HTTP/1.0\r\n\r\n", 18);
    peer_expect_end(fd);
    fd = peer_connect(&bed);
    store_be64(data, NBD_OPTION_MAGIC);
    store_be32(data + 8, NBD_OPT_LIST);
    store_be32(data + 12, UINT32_MAX);
    peer_send(fd, data, 16);
    peer_expect_end(fd);
    fd = peer_connect(&bed);
    peer_send(fd, data, 9); /* and goes away in the middle */
    (void)close(fd);
}

/* A client that asks without reading holds one answer, not memory without end. */
static void flood(void **state)
{
    uint8_t head[NBD_OPTION_SIZE];
    (void)state;
    int fd = peer_connect(&bed);
    store_be64(head, NBD_OPTION_MAGIC);
    store_be32(head + 8, NBD_OPT_LIST);
    store_be32(head + 12, 0);
    for (unsigned i = 0; i < 2000; i++)
        peer_send(fd, head, sizeof(head));
    for (unsigned i = 0; i < 2000; i++) {
        assert_int_equal(peer_option_reply(fd, NBD_OPT_LIST, data, sizeof(data), &length), NBD_REP_SERVER);
        assert_int_equal(peer_option_reply(fd, NBD_OPT_LIST, data, sizeof(data), &length), NBD_REP_ACK);
    }
    (void)close(fd);
}

static void too_many_clients(void **state)
{
    int fds[16];
    struct export_stats stats;
    (void)state;
    do
        bed.export->ops->stats(bed.export, &stats);
    while (stats.clients > 0); /* those of the tests before */
    for (unsigned i = 0; i < 16; i++)
        fds[i] = peer_open(&bed, false);
    bed.export->ops->stats(bed.export, &stats);
    assert_int_equal(stats.clients, 16);
    int seventeenth = peer_dial(&bed);
    peer_expect_end(seventeenth);
    for (unsigned i = 0; i < 16; i++)
        (void)close(fds[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(list),          cmocka_unit_test(unknown_options),
        cmocka_unit_test(info),          cmocka_unit_test(wrong_names_and_lengths),
        cmocka_unit_test(meta_contexts), cmocka_unit_test(meta_context_of_another_name),
        cmocka_unit_test(export_name),   cmocka_unit_test(broken_rules),
        cmocka_unit_test(flood),         cmocka_unit_test(too_many_clients),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
