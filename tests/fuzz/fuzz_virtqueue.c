// SPDX-License-Identifier: Apache-2.0
// The input is the guest's memory: a ring of 16 with whatever it describes. Each chain is taken, read and translated,
// and every byte that it names is touched.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/checked.h"
#include "provisioner/blk/virtio_blk.h"
#include "provisioner/blk/virtqueue.h"

#define SIZE 16
#define HALF 4096u
#define FEATURES ((UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX) | (UINT64_C(1) << VIRTIO_RING_F_INDIRECT_DESC))

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t *shared;
static struct guest_memory memory;
static struct iovec iov[VIRTQUEUE_IOV_MAX];

// Two regions at guest addresses 0 and 4096, swapped in the file.
static void set_up(void)
{
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    const struct guest_region_request regions[2] = {{0, HALF, 0, HALF}, {HALF, HALF, HALF, 0}};
    const int fds[2] = {fd, fd};
    if (fd < 0 || ftruncate(fd, 2 * HALF) < 0 || guest_memory_load(&memory, regions, fds, 2) < 0)
        abort();
    shared = mmap(NULL, 2 * HALF, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared == MAP_FAILED)
        abort();
    (void)close(fd);
}

static void touch(const struct iovec *v, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        volatile uint8_t *p = v[i].iov_base;
        p[0] = p[0];
        p[v[i].iov_len - 1] = p[v[i].iov_len - 1];
    }
}

static void translate(struct virtqueue_chain *chain)
{
    static const struct virtio_blk_volume volume = {.geometry = {.size = 1 << 20, .discard = true}, .queues = 1};
    const struct virtio_blk_rules rules = {&volume, UINT64_MAX, true};
    struct image_request request;
    uint8_t *status, answer;
    int r = virtio_blk_translate(&rules, chain, &request, &status, &answer);
    if (r < 0)
        return;
    if (r == 1) {
        uint64_t total = 0;
        touch(request.iov, request.iovcnt);
        for (unsigned i = 0; i < request.iovcnt; i++)
            total += request.iov[i].iov_len;
        if (request.iovcnt && total != request.length)
            abort();
    }
    *status = answer;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct virtqueue_addresses addresses = {0, 256, 320};
    struct virtqueue queue;
    uint16_t head;
    if (!shared)
        set_up();
    memset(shared, 0, 2 * HALF);
    memcpy(shared + HALF, data, MIN(size, HALF));
    if (size > HALF)
        memcpy(shared, data + HALF, MIN(size - HALF, HALF));
    if (virtqueue_start(&queue, &memory, SIZE, &addresses, size & 1 ? FEATURES : 0, 0) < 0)
        abort();
    for (unsigned i = 0; i < 64 && virtqueue_next(&queue, &head) > 0; i++) {
        struct virtqueue_chain chain = {.iov = iov};
        if (virtqueue_read(&queue, head, &chain) < 0)
            continue;
        touch(chain.iov, chain.readable + chain.writable);
        translate(&chain);
        virtqueue_push(&queue, head, 1);
        (void)virtqueue_publish(&queue);
    }
    (void)virtqueue_want_kick(&queue);
    return 0;
}
