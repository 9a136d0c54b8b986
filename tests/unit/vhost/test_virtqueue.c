// SPDX-License-Identifier: Apache-2.0
// Virtqueues and guest memory against guests that break every rule.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "provisioner/blk/virtqueue.h"

#define SIZE 8
#define GUEST 0x100000u
#define USER 0x7000000u
#define HALF 0x10000u
#define FEATURES ((UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX) | (UINT64_C(1) << VIRTIO_RING_F_INDIRECT_DESC))

// Two regions, neighbours for the guest, swapped in the file.
struct fixture {
    int fd;
    uint8_t *shared; // the file
    struct guest_memory memory;
    struct virtqueue queue;
    struct vring_desc *descriptors;
    struct vring_avail *available;
    struct vring_used *used;
    struct iovec iov[VIRTQUEUE_IOV_MAX];
    struct virtqueue_chain chain;
};

static const struct virtqueue_addresses addresses = {USER, USER + 0x1000, USER + 0x2000};

static uint8_t *at(struct fixture *f, uint64_t guest)
{
    uint64_t offset = guest - GUEST;
    return f->shared + (offset < HALF ? HALF + offset : offset - HALF);
}

static int setup(void **state)
{
    static struct fixture f;
    memset(&f, 0, sizeof(f));
    f.fd = memfd_create("test", MFD_CLOEXEC);
    assert_int_equal(ftruncate(f.fd, 2 * HALF), 0);
    f.shared = mmap(NULL, 2 * HALF, PROT_READ | PROT_WRITE, MAP_SHARED, f.fd, 0);
    assert_ptr_not_equal(f.shared, MAP_FAILED);
    const struct guest_region_request regions[2] = {{GUEST, HALF, USER, HALF}, {GUEST + HALF, HALF, USER + HALF, 0}};
    const int fds[2] = {f.fd, f.fd};
    assert_int_equal(guest_memory_load(&f.memory, regions, fds, 2), 0);
    f.descriptors = (void *)at(&f, GUEST);
    f.available = (void *)at(&f, GUEST + 0x1000);
    f.used = (void *)at(&f, GUEST + 0x2000);
    assert_int_equal(virtqueue_start(&f.queue, &f.memory, SIZE, &addresses, FEATURES, 0), 0);
    f.chain.iov = f.iov;
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    guest_memory_clear(&f->memory);
    (void)munmap(f->shared, 2 * HALF);
    (void)close(f->fd);
    return 0;
}

static void offer(struct fixture *f, uint16_t head)
{
    f->available->ring[f->available->idx % SIZE] = head;
    f->available->idx++;
}

static void reads_chains_in_order(void **state)
{
    struct fixture *f = *state;
    uint16_t head;
    f->descriptors[3] = (struct vring_desc){GUEST + 0x4000, 16, VRING_DESC_F_NEXT, 5};
    f->descriptors[5] = (struct vring_desc){GUEST + 0x5000, 512, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 1};
    f->descriptors[1] = (struct vring_desc){GUEST + 0x6000, 1, VRING_DESC_F_WRITE, 0};
    assert_int_equal(virtqueue_next(&f->queue, &head), 0);
    offer(f, 3);
    assert_int_equal(virtqueue_next(&f->queue, &head), 1);
    assert_int_equal(head, 3);
    assert_int_equal(virtqueue_read(&f->queue, head, &f->chain), 0);
    assert_int_equal(f->chain.readable, 1);
    assert_int_equal(f->chain.writable, 2);
    assert_int_equal(f->chain.writable_bytes, 513);
    // The server sees it at another address than the test, so compare by content.
    memset(at(f, GUEST + 0x5000), 0x5a, 512);
    assert_int_equal(((uint8_t *)f->iov[1].iov_base)[511], 0x5a);
    assert_int_equal(virtqueue_next(&f->queue, &head), 0);
}

static void splits_at_region_borders(void **state)
{
    struct fixture *f = *state;
    f->descriptors[0] = (struct vring_desc){GUEST + HALF - 100, 300, 0, 0};
    assert_int_equal(virtqueue_read(&f->queue, 0, &f->chain), 0);
    assert_int_equal(f->chain.readable, 2);
    assert_int_equal(f->iov[0].iov_len, 100);
    assert_int_equal(f->iov[1].iov_len, 200);
}

static void indirect_tables(void **state)
{
    struct fixture *f = *state;
    struct vring_desc *table = (void *)at(f, GUEST + 0x3000);
    table[0] = (struct vring_desc){GUEST + 0x4000, 16, VRING_DESC_F_NEXT, 2};
    table[2] = (struct vring_desc){GUEST + 0x5000, 1, VRING_DESC_F_WRITE, 0};
    f->descriptors[0] = (struct vring_desc){GUEST + 0x3000, 48, VRING_DESC_F_INDIRECT, 0};
    assert_int_equal(virtqueue_read(&f->queue, 0, &f->chain), 0);
    assert_int_equal(f->chain.readable + f->chain.writable, 2);

    const struct vring_desc bad[] = {
        {GUEST + 0x3000, 0, VRING_DESC_F_INDIRECT, 0},                      // empty
        {GUEST + 0x3000, 40, VRING_DESC_F_INDIRECT, 0},                     // not a multiple
        {GUEST + 0x3000, 32, VRING_DESC_F_INDIRECT, 0},                     // next beyond the table
        {GUEST + 0x3000, 48, VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT, 0}, // and a chain
        {GUEST + 0x3004, 48, VRING_DESC_F_INDIRECT, 0},                     // misaligned
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        f->descriptors[0] = bad[i];
        assert_int_equal(virtqueue_read(&f->queue, 0, &f->chain), -EPROTO);
    }
    f->descriptors[0] = (struct vring_desc){GUEST + 2 * HALF - 16, 48, VRING_DESC_F_INDIRECT, 0};
    assert_int_equal(virtqueue_read(&f->queue, 0, &f->chain), -EFAULT);
    f->descriptors[0] = (struct vring_desc){GUEST + 0x3000, 0xfffffff0u, VRING_DESC_F_INDIRECT, 0};
    assert_int_equal(virtqueue_read(&f->queue, 0, &f->chain), -EFAULT);
    table[0].flags = VRING_DESC_F_INDIRECT; // nested
    f->descriptors[0] = (struct vring_desc){GUEST + 0x3000, 48, VRING_DESC_F_INDIRECT, 0};
    assert_int_equal(virtqueue_read(&f->queue, 0, &f->chain), -EPROTO);
    f->queue.indirect = false; // not negotiated
    table[0].flags = 0;
    assert_int_equal(virtqueue_read(&f->queue, 0, &f->chain), -EPROTO);
}

static void hostile_chains_end(void **state)
{
    struct fixture *f = *state;
    // A loop of empty descriptors, a loop of full ones, an index beyond the ring, the wrong order, foreign memory.
    for (uint16_t i = 0; i < SIZE; i++)
        f->descriptors[i] = (struct vring_desc){GUEST, 0, VRING_DESC_F_NEXT, (uint16_t)((i + 1) % SIZE)};
    assert_int_equal(virtqueue_read(&f->queue, 0, &f->chain), -EPROTO);
    f->descriptors[2] = (struct vring_desc){GUEST, 16, VRING_DESC_F_NEXT, 2};
    assert_int_equal(virtqueue_read(&f->queue, 2, &f->chain), -EPROTO);
    f->descriptors[0] = (struct vring_desc){GUEST, 16, VRING_DESC_F_NEXT, SIZE};
    assert_int_equal(virtqueue_read(&f->queue, 0, &f->chain), -EPROTO);
    f->descriptors[0] = (struct vring_desc){GUEST, 16, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 1};
    f->descriptors[1] = (struct vring_desc){GUEST, 16, 0, 0};
    assert_int_equal(virtqueue_read(&f->queue, 0, &f->chain), -EPROTO);
    const struct vring_desc foreign[] = {
        {GUEST - 1, 16, 0, 0}, {GUEST + 2 * HALF - 8, 16, 0, 0}, {UINT64_MAX - 8, 16, 0, 0},
        {0, 16, 0, 0},         {GUEST, UINT32_MAX, 0, 0},        {GUEST + 2 * HALF, 1, 0, 0},
    };
    for (size_t i = 0; i < sizeof(foreign) / sizeof(foreign[0]); i++) {
        f->descriptors[0] = foreign[i];
        assert_int_equal(virtqueue_read(&f->queue, 0, &f->chain), -EFAULT);
    }
}

static void too_many_pieces(void **state)
{
    struct fixture *f = *state;
    struct vring_desc *table = (void *)at(f, GUEST + 0x3000);
    const unsigned n = 200;
    for (uint16_t i = 0; i < n; i++)
        table[i] = (struct vring_desc){GUEST + 0x8000, 8, i + 1u < n ? VRING_DESC_F_NEXT : 0, (uint16_t)(i + 1)};
    f->descriptors[0] = (struct vring_desc){GUEST + 0x3000, n * 16, VRING_DESC_F_INDIRECT, 0};
    assert_int_equal(virtqueue_read(&f->queue, 0, &f->chain), -E2BIG);
}

static void hostile_indexes(void **state)
{
    struct fixture *f = *state;
    uint16_t head;
    offer(f, SIZE);
    assert_int_equal(virtqueue_next(&f->queue, &head), -EPROTO);
    f->available->idx = SIZE + 1;
    assert_int_equal(virtqueue_next(&f->queue, &head), -EPROTO);
    f->available->idx = 0xffff;
    assert_int_equal(virtqueue_next(&f->queue, &head), -EPROTO);
}

static void refuses_bad_rings(void **state)
{
    struct fixture *f = *state;
    struct virtqueue q;
    assert_int_equal(virtqueue_start(&q, &f->memory, 0, &addresses, 0, 0), -EINVAL);
    assert_int_equal(virtqueue_start(&q, &f->memory, 3, &addresses, 0, 0), -EINVAL);
    assert_int_equal(virtqueue_start(&q, &f->memory, 2048, &addresses, 0, 0), -EINVAL);
    struct virtqueue_addresses a = addresses;
    a.used = USER + 2 * HALF - 64;
    assert_int_equal(virtqueue_start(&q, &f->memory, SIZE, &a, 0, 0), -EFAULT);
    a.used = UINT64_MAX - 4;
    assert_int_equal(virtqueue_start(&q, &f->memory, SIZE, &a, 0, 0), -EFAULT);
    a.used = USER + HALF - 8; // rings may not cross regions
    assert_int_equal(virtqueue_start(&q, &f->memory, SIZE, &a, 0, 0), -EFAULT);
    a = addresses;
    a.descriptors += 8;
    assert_int_equal(virtqueue_start(&q, &f->memory, SIZE, &a, 0, 0), -EINVAL);
}

static void notifies_as_asked(void **state)
{
    struct fixture *f = *state;
    __virtio16 *used_event = &f->available->ring[SIZE];
    *used_event = 1;
    assert_false(virtqueue_publish(&f->queue));
    virtqueue_push(&f->queue, 4, 17);
    assert_int_equal(f->used->idx, 0);
    assert_false(virtqueue_publish(&f->queue)); // the guest waits for the second
    assert_int_equal(f->used->idx, 1);
    assert_int_equal(f->used->ring[0].id, 4);
    assert_int_equal(f->used->ring[0].len, 17);
    virtqueue_push(&f->queue, 5, 1);
    virtqueue_push(&f->queue, 6, 1);
    assert_true(virtqueue_publish(&f->queue));
    f->queue.event_index = false;
    f->available->flags = VRING_AVAIL_F_NO_INTERRUPT;
    virtqueue_push(&f->queue, 7, 1);
    assert_false(virtqueue_publish(&f->queue));
    f->available->flags = 0;
    virtqueue_push(&f->queue, 0, 1);
    assert_true(virtqueue_publish(&f->queue));
}

static void asks_for_kicks(void **state)
{
    struct fixture *f = *state;
    const uint16_t *available_event = (const uint16_t *)(const void *)&f->used->ring[SIZE];
    uint16_t head;
    offer(f, 0);
    offer(f, 1);
    assert_true(virtqueue_want_kick(&f->queue));
    assert_int_equal(virtqueue_next(&f->queue, &head), 1);
    assert_int_equal(virtqueue_next(&f->queue, &head), 1);
    assert_false(virtqueue_want_kick(&f->queue));
    assert_int_equal(*available_event, 2);
}

static void refuses_bad_memory(void **state)
{
    struct fixture *f = *state;
    struct guest_memory m = {0};
    const int fds[2] = {f->fd, f->fd};
    const struct guest_region_request bad[][2] = {
        {{0, 0, 0, 0}},                            // empty
        {{0, 4 * HALF, 0, 0}},                     // beyond its file
        {{0, HALF, 0, UINT64_MAX - 1}},            // overflow in the file
        {{UINT64_MAX - 1, HALF, 0, 0}},            // in the guest
        {{0, HALF, UINT64_MAX - 1, 0}},            // in the front-end
        {{0, HALF, 0, 0}, {HALF - 1, HALF, 0, 0}}, // overlap
        {{0, INT64_MAX, 0, INT64_MAX}},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(guest_memory_load(&m, bad[i], fds, bad[i][1].size ? 2 : 1), -EINVAL);
    assert_int_equal(m.count, 0);
    int pipes[2];
    assert_int_equal(pipe(pipes), 0);
    assert_int_equal(guest_memory_load(&m, bad[0], pipes, 1), -EINVAL);
    assert_int_equal(guest_memory_load(&m, (const struct guest_region_request[]){{0, 4096, 0, 0}}, pipes, 1), -EINVAL);
    (void)close(pipes[0]);
    (void)close(pipes[1]);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(reads_chains_in_order), T(splits_at_region_borders), T(indirect_tables),   T(hostile_chains_end),
        T(too_many_pieces),       T(hostile_indexes),          T(refuses_bad_rings), T(notifies_as_asked),
        T(asks_for_kicks),        T(refuses_bad_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
