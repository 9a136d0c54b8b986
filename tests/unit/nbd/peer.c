// SPDX-License-Identifier: Apache-2.0
// The byte-level NBD client.
#include "peer.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/bytes.h"

/* ---- bed ---- */

static int listen_on(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(fd, 16), 0);
    return fd;
}

void bed_open(struct bed *bed, uint64_t size, unsigned threads, bool read_only)
{
    struct error err = ERROR_INIT;
    char path[96];
    *bed = (struct bed){.directory = "/tmp/platter-nbd.XXXXXX", .size = size};
    assert_non_null(mkdtemp(bed->directory));
    (void)snprintf(bed->socket, sizeof(bed->socket), "%s/socket", bed->directory);
    (void)snprintf(path, sizeof(path), "%s/image", bed->directory);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    (void)unlink(path);
    struct image_layer layer = {.format = "raw"};
    const struct io_file_options file_options = {.writable = !read_only};
    assert_int_equal(io_file_open(fd, &file_options, &layer.file, &err), 0);
    const struct image_options image_options = {.read_only = read_only};
    assert_int_equal(image_open(&layer, 1, &image_options, &bed->image, &err), 0);
    const struct export_options options = {
        .name = "disk",
        .image = bed->image,
        .fd = listen_on(bed->socket),
        .queues = threads,
        .read_only = read_only,
    };
    assert_int_equal(nbd_export_ops.start(&options, &bed->export, &err), 0);
}

void bed_close(struct bed *bed)
{
    struct error err = ERROR_INIT;
    if (bed->export)
        nbd_export_ops.stop(bed->export);
    assert_int_equal(image_close(bed->image, &err), 0);
    (void)unlink(bed->socket);
    (void)rmdir(bed->directory);
}

/* ---- bytes ---- */

void peer_send(int fd, const void *bytes, size_t length)
{
    while (length > 0) {
        ssize_t n = send(fd, bytes, length, MSG_NOSIGNAL);
        assert_true(n > 0);
        bytes = (const uint8_t *)bytes + n;
        length -= (size_t)n;
    }
}

void peer_receive(int fd, void *bytes, size_t length)
{
    while (length > 0) {
        ssize_t n = recv(fd, bytes, length, 0);
        assert_true(n > 0);
        bytes = (uint8_t *)bytes + n;
        length -= (size_t)n;
    }
}

void peer_expect_end(int fd)
{
    uint8_t byte;
    ssize_t n = recv(fd, &byte, 1, 0);
    assert_true(n == 0 || (n < 0 && (errno == ECONNRESET || errno == EPIPE)));
    (void)close(fd);
}

/* ---- handshake ---- */

int peer_dial(const struct bed *bed)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const struct timeval limit = {.tv_sec = 30};
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", bed->socket);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)); /* a test that hangs fails */
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

int peer_connect(const struct bed *bed)
{
    uint8_t hello[18];
    uint8_t flags[4];
    int fd = peer_dial(bed);
    peer_receive(fd, hello, sizeof(hello));
    assert_true(load_be64(hello) == NBD_MAGIC && load_be64(hello + 8) == NBD_OPTION_MAGIC);
    store_be32(flags, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
    peer_send(fd, flags, sizeof(flags));
    return fd;
}

void peer_option(int fd, uint32_t option, const void *data, size_t length)
{
    uint8_t head[NBD_OPTION_SIZE];
    store_be64(head, NBD_OPTION_MAGIC);
    store_be32(head + 8, option);
    store_be32(head + 12, (uint32_t)length);
    peer_send(fd, head, sizeof(head));
    peer_send(fd, data, length);
}

uint32_t peer_option_reply(int fd, uint32_t option, void *data, size_t size, size_t *ret_length)
{
    uint8_t head[NBD_OPTION_REPLY_SIZE];
    peer_receive(fd, head, sizeof(head));
    assert_true(load_be64(head) == NBD_OPTION_REPLY_MAGIC);
    assert_int_equal(load_be32(head + 8), option);
    *ret_length = load_be32(head + 16);
    assert_true(*ret_length <= size);
    peer_receive(fd, data, *ret_length);
    return load_be32(head + 12);
}

int peer_open(const struct bed *bed, bool structured)
{
    static const uint8_t go[] = {0, 0, 0, 4, 'd', 'i', 's', 'k', 0, 0};
    static const char meta[] = "\0\0\0\4disk\0\0\0\1\0\0\0\17base:allocation";
    uint8_t data[256];
    size_t length;
    uint32_t type;
    int fd = peer_connect(bed);
    if (structured) {
        peer_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
        assert_int_equal(peer_option_reply(fd, NBD_OPT_STRUCTURED_REPLY, data, sizeof(data), &length), NBD_REP_ACK);
        peer_option(fd, NBD_OPT_SET_META_CONTEXT, meta, sizeof(meta) - 1);
        type = peer_option_reply(fd, NBD_OPT_SET_META_CONTEXT, data, sizeof(data), &length);
        assert_int_equal(type, NBD_REP_META_CONTEXT);
        type = peer_option_reply(fd, NBD_OPT_SET_META_CONTEXT, data, sizeof(data), &length);
        assert_int_equal(type, NBD_REP_ACK);
    }
    peer_option(fd, NBD_OPT_GO, go, sizeof(go));
    while ((type = peer_option_reply(fd, NBD_OPT_GO, data, sizeof(data), &length)) == NBD_REP_INFO)
        if (load_be16(data) == NBD_INFO_EXPORT)
            assert_true(load_be64(data + 2) == bed->size);
    assert_int_equal(type, NBD_REP_ACK);
    return fd;
}

/* ---- transmission ---- */

void peer_request(int fd, uint16_t type, uint16_t flags, uint64_t cookie, uint64_t offset, uint32_t length)
{
    uint8_t head[NBD_REQUEST_SIZE];
    store_be32(head, NBD_REQUEST_MAGIC);
    store_be16(head + 4, flags);
    store_be16(head + 6, type);
    store_be64(head + 8, cookie);
    store_be64(head + 16, offset);
    store_be32(head + 24, length);
    peer_send(fd, head, sizeof(head));
}

uint32_t peer_simple(int fd, uint64_t *ret_cookie)
{
    uint8_t head[NBD_SIMPLE_REPLY_SIZE];
    peer_receive(fd, head, sizeof(head));
    assert_true(load_be32(head) == NBD_SIMPLE_REPLY_MAGIC);
    *ret_cookie = load_be64(head + 8);
    return load_be32(head + 4);
}

void peer_chunk(int fd, struct peer_chunk *ret_chunk)
{
    uint8_t head[NBD_CHUNK_SIZE];
    peer_receive(fd, head, sizeof(head));
    assert_true(load_be32(head) == NBD_CHUNK_MAGIC);
    ret_chunk->flags = load_be16(head + 4);
    ret_chunk->type = load_be16(head + 6);
    ret_chunk->cookie = load_be64(head + 8);
    ret_chunk->length = load_be32(head + 16);
}
