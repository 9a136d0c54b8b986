// SPDX-License-Identifier: Apache-2.0
// The input is a sequence of FUSE requests, given to the export through a socket that keeps message boundaries. After
// each input the export must still answer.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "common/checked.h"
#include "provisioner/blk/export.h"
#include "provisioner/blk/fuse_protocol.h"

#define DISK (1 << 20)
#define PATIENCE_S 20

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int kernel = -1; /* our end */
static uint64_t unique;

static void must(long result)
{
    if (result < 0)
        abort();
}

static void send_request(uint32_t opcode, const void *body, size_t length)
{
    static uint8_t message[65536];
    struct fuse_in_header head = {.opcode = opcode, .unique = ++unique, .nodeid = FUSE_ROOT_ID};
    length = MIN(length, sizeof(message) - sizeof(head));
    head.len = (uint32_t)(sizeof(head) + length);
    memcpy(message, &head, sizeof(head));
    if (length)
        memcpy(message + sizeof(head), body, length);
    must(send(kernel, message, head.len, 0));
}

/* Until the answer to the last request; none may be malformed. */
static void receive_until_last(void)
{
    static uint8_t answer[sizeof(struct fuse_out_header) + FUSE_TRANSFER_MAX];
    struct fuse_out_header head;
    do {
        ssize_t n = recv(kernel, answer, sizeof(answer), 0);
        if (n < (ssize_t)sizeof(head))
            abort();
        memcpy(&head, answer, sizeof(head));
        if (head.len != n || head.error > 0 || head.unique > unique || (head.error && n != sizeof(head)))
            abort();
    } while (head.unique != unique);
}

static void set_up(void)
{
    const struct timeval limit = {.tv_sec = PATIENCE_S};
    const int bytes = 1 << 20;
    struct io_file *file;
    struct image *image;
    struct export *export;
    int pair[2];
    int fd = memfd_create("disk", MFD_CLOEXEC);
    must(ftruncate(fd, DISK));
    must(io_file_open(fd, &(struct io_file_options){.writable = true}, &file, NULL));
    must(image_open(&(struct image_layer){.format = "raw", .file = file}, 1, &(struct image_options){0}, &image, NULL));
    must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair));
    for (unsigned i = 0; i < 2; i++)
        must(setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)));
    kernel = pair[0];
    must(setsockopt(kernel, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
    const struct fuse_init_in in = {.major = 7, .minor = 38, .flags = UINT32_MAX, .flags2 = UINT32_MAX};
    send_request(FUSE_INIT, &in, sizeof(in));
    const struct export_options options = {.name = "d", .image = image, .fd = pair[1], .queues = 1};
    must(fuse_export_ops.start(&options, &export, NULL));
    receive_until_last();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t opcodes[] = {FUSE_READ, FUSE_WRITE, FUSE_FALLOCATE, FUSE_SETATTR, FUSE_OPEN, FUSE_FSYNC};
    if (kernel < 0)
        set_up();
    /* Opcode and length, then the body; some are not even requests. */
    for (unsigned i = 0; i < 16 && size >= 3; i++) {
        uint32_t opcode = data[0] < 128 ? opcodes[data[0] % ARRAY_SIZE(opcodes)] : data[0] - 128u;
        size_t length = MIN((size_t)data[1] * (data[2] & 1 ? 1 : 16), size - 3);
        if (opcode == FUSE_INTERRUPT && length > 0)
            must(send(kernel, data + 3, MIN(length, sizeof(struct fuse_in_header) - 1), 0));
        else
            send_request(opcode, data + 3, length);
        data += 3 + length;
        size -= 3 + length;
    }
    send_request(FUSE_RELEASE, NULL, 0);
    receive_until_last();
    return 0;
}
