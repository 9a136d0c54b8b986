// SPDX-License-Identifier: Apache-2.0
// The input is what an NBD client says after the greeting: bytes as they are, or, so that inputs get further, a list of
// options and requests whose frames are made right. The server must end the connection when the client has.
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "provisioner/blk/export.h"
#include "provisioner/blk/nbd_protocol.h"

#define DISK (1 << 20)
#define PATIENCE_MS 20000

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct sockaddr_un address = {.sun_family = AF_UNIX};
static socklen_t address_length;
static uint8_t stream[1 << 20];
static size_t stream_length;

static void must(int result)
{
    if (result < 0)
        abort();
}

static void set_up(void)
{
    struct io_file *file;
    struct image *image;
    struct export *export;
    int fd = memfd_create("disk", MFD_CLOEXEC);
    must(ftruncate(fd, DISK));
    must(io_file_open(fd, &(struct io_file_options){.writable = true}, &file, NULL));
    must(image_open(&(struct image_layer){.format = "raw", .file = file}, 1, &(struct image_options){0}, &image, NULL));
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(bind(listener, (struct sockaddr *)&address, sizeof(sa_family_t))); /* a free abstract name */
    must(listen(listener, 16));
    address_length = sizeof(address);
    must(getsockname(listener, (struct sockaddr *)&address, &address_length));
    const struct export_options options = {.name = "d", .image = image, .fd = listener, .queues = 1};
    must(nbd_export_ops.start(&options, &export, NULL));
}

/* ---- what the client says ---- */

static void add(const void *bytes, size_t length)
{
    length = MIN(length, sizeof(stream) - stream_length);
    if (length)
        memcpy(stream + stream_length, bytes, length);
    stream_length += length;
}

static void add_option(uint32_t option, const void *data, uint32_t length)
{
    uint8_t head[NBD_OPTION_SIZE];
    store_be64(head, NBD_OPTION_MAGIC);
    store_be32(head + 8, option);
    store_be32(head + 12, length);
    add(head, sizeof(head));
    add(data, length);
}

static void add_request(const uint8_t *d)
{
    static const uint8_t zeros[65536];
    static const uint32_t lengths[] = {0, 1, 512, 4096, 65536, 1 << 20, (1 << 20) + 1, UINT32_MAX};
    uint8_t head[NBD_REQUEST_SIZE];
    uint16_t type = d[0] % 10;
    uint32_t length = lengths[d[2] % ARRAY_SIZE(lengths)];
    store_be32(head, NBD_REQUEST_MAGIC);
    store_be16(head + 4, d[1] & 31);
    store_be16(head + 6, type);
    store_be64(head + 8, stream_length);
    store_be64(head + 16, d[3] == 255 ? UINT64_MAX - d[4] : (uint64_t)d[3] * 8192 + d[4]);
    store_be32(head + 24, length);
    add(head, sizeof(head));
    if (type == NBD_CMD_WRITE && length <= sizeof(zeros))
        add(zeros, length);
}

/* Usual options, then requests of five bytes. */
static void compose(const uint8_t *data, size_t size)
{
    static const char meta[] = "\0\0\0\1d\0\0\0\1\0\0\0\17base:allocation";
    uint8_t flags[4];
    store_be32(flags, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
    add(flags, sizeof(flags));
    if (data[0] & 2)
        add_option(NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    if (data[0] & 4)
        add_option(NBD_OPT_SET_META_CONTEXT, meta, sizeof(meta) - 1);
    if (data[0] & 8 && size > 40) {
        add_option(data[1] % 12, data + 3, data[2] % 32);
        data += 36;
        size -= 36;
    }
    add_option(NBD_OPT_GO, "\0\0\0\1d\0\0", 7);
    for (size_t at = 1; at + 5 <= size; at += 5)
        add_request(data + at);
}

/* ---- the conversation ---- */

/* Read what is there; false at the end of the connection. */
static bool drain(int fd)
{
    static uint8_t sink[65536];
    for (;;) {
        ssize_t n = recv(fd, sink, sizeof(sink), MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            return false;
        if (n < 0 && errno == EAGAIN)
            return true;
    }
}

static void converse(int fd)
{
    size_t sent = 0;
    bool open = true;
    for (;;) {
        struct pollfd p = {.fd = fd, .events = POLLIN | (open ? POLLOUT : 0)};
        if (poll(&p, 1, PATIENCE_MS) == 0)
            abort(); /* the server neither reads nor ends */
        if (!drain(fd))
            return;
        if (!open)
            continue;
        ssize_t n = send(fd, stream + sent, stream_length - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0)
            sent += (size_t)n;
        if (sent == stream_length || (n < 0 && errno != EAGAIN)) {
            (void)shutdown(fd, SHUT_WR);
            open = false;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!address_length)
        set_up();
    if (size < 8)
        return 0;
    stream_length = 0;
    if (data[0] & 1)
        add(data + 1, size - 1);
    else
        compose(data, size);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(connect(fd, (struct sockaddr *)&address, address_length));
    converse(fd);
    (void)close(fd);
    return 0;
}
