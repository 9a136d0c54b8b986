// SPDX-License-Identifier: Apache-2.0
// Front-ends and guests that break the rules, in every way we could think of and in random ways. None may crash the
// server, leave a descriptor behind, or keep the next client from working.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "fixture.h"

#define DISK (4 * MIB)

static struct fixture fixture;
static unsigned fds_before; // 0 = not counted yet

static int setup(void **state)
{
    (void)state;
    fixture_start(&fixture, "raw", DISK, false);
    fds_before = 0;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    fixture_stop(&fixture);
    return 0;
}

static void works(struct vhost_client *c, unsigned queue)
{
    memset(vhost_client_buffer(c, queue, 0), 0x77, 4096);
    assert_int_equal(vhost_client_do(c, queue, VIRTIO_BLK_T_OUT, 8, 4096, 0), VIRTIO_BLK_S_OK);
    memset(vhost_client_buffer(c, queue, 0), 0, 4096);
    assert_int_equal(vhost_client_do(c, queue, VIRTIO_BLK_T_IN, 8, 4096, 0), VIRTIO_BLK_S_OK);
    assert_int_equal(vhost_client_buffer(c, queue, 0)[4095], 0x77);
}

// A new client is served; it also shows that the server is done with the one before.
static void next_client_works(void)
{
    struct vhost_client *c = fixture_client(&fixture, NULL);
    works(c, 0);
    fds_before = fds_before ? fds_before : count_fds();
    assert_int_equal(count_fds(), fds_before);
    (void)vhost_client_close(c);
}

// ---- messages --------------------------------------------------------------------------------------------------

struct bad_message {
    uint32_t request, flags;
    size_t size;
    unsigned fds;
    union {
        uint64_t u64;
        struct vhost_user_vring_state state;
        struct vhost_user_vring_address address;
        struct vhost_user_memory memory;
        struct vhost_user_config config;
        struct vhost_user_inflight inflight;
    } p;
};

#define NEED (VHOST_USER_VERSION | VHOST_USER_FLAG_NEED_REPLY)

static const struct bad_message bad_messages[] = {
    {0, NEED, 0, 0, {0}},
    {41, NEED, 8, 0, {0}},
    {UINT32_MAX, NEED, 8, 1, {0}},
    {6, NEED, 16, 1, {0}},                               // SET_LOG_BASE
    {VHOST_USER_SET_FEATURES, NEED, 8, 0, {UINT64_MAX}}, // never offered
    {VHOST_USER_SET_FEATURES, NEED, 8, 0, {1ull << 34}}, // packed rings
    {VHOST_USER_SET_FEATURES, NEED, 4, 0, {0}},          // short
    {VHOST_USER_SET_FEATURES, NEED, 16, 0, {0}},         // long
    {VHOST_USER_SET_FEATURES, NEED, 8, 1, {0}},          // with a descriptor
    {VHOST_USER_SET_PROTOCOL_FEATURES, NEED, 8, 0, {1ull << 63}},
    {VHOST_USER_SET_OWNER, NEED, 0, 8, {0}}, // eight descriptors
    {VHOST_USER_SET_VRING_NUM, NEED, 8, 0, {.state = {0, 0}}},
    {VHOST_USER_SET_VRING_NUM, NEED, 8, 0, {.state = {0, 3}}},
    {VHOST_USER_SET_VRING_NUM, NEED, 8, 0, {.state = {0, 65536}}},
    {VHOST_USER_SET_VRING_NUM, NEED, 8, 0, {.state = {FIXTURE_QUEUES, 8}}},
    {VHOST_USER_SET_VRING_NUM, NEED, 8, 0, {.state = {UINT32_MAX, 8}}},
    {VHOST_USER_SET_VRING_NUM, NEED, 8, 0, {.state = {0, 1024}}}, // rings leave the memory
    {VHOST_USER_SET_VRING_BASE, NEED, 8, 0, {.state = {0, 65536}}},
    {VHOST_USER_SET_VRING_BASE, NEED, 8, 0, {.state = {99, 0}}},
    {VHOST_USER_SET_VRING_ADDR, NEED, 40, 0, {.address = {.index = 0}}},
    {VHOST_USER_SET_VRING_ADDR, NEED, 40, 0, {.address = {.index = 99}}},
    {VHOST_USER_SET_VRING_ADDR, NEED, 40, 0, {.address = {0, 0, UINT64_MAX, UINT64_MAX, UINT64_MAX, 0}}},
    {VHOST_USER_SET_VRING_ADDR, NEED, 39, 0, {.address = {.index = 0}}},
    {VHOST_USER_SET_VRING_ENABLE, NEED, 8, 0, {.state = {0, 2}}},
    {VHOST_USER_SET_VRING_ENABLE, NEED, 8, 0, {.state = {99, 1}}},
    {VHOST_USER_SET_VRING_KICK, NEED, 8, 0, {0}}, // neither descriptor nor the bit for it
    {VHOST_USER_SET_VRING_KICK, NEED, 8, 0, {VHOST_USER_VRING_NOFD}},
    {VHOST_USER_SET_VRING_KICK, NEED, 8, 1, {VHOST_USER_VRING_NOFD}},
    {VHOST_USER_SET_VRING_KICK, NEED, 8, 1, {99}},
    {VHOST_USER_SET_VRING_CALL, NEED, 8, 0, {0}},
    {VHOST_USER_SET_VRING_ERR, NEED, 8, 2, {0}},
    {VHOST_USER_SET_MEM_TABLE, NEED, 8, 0, {.memory = {.count = 1}}},
    {VHOST_USER_SET_MEM_TABLE, NEED, 40, 1, {.memory = {.count = 1}}}, // empty region
    {VHOST_USER_SET_MEM_TABLE, NEED, 40, 1, {.memory = {.count = UINT32_MAX}}},
    {VHOST_USER_SET_MEM_TABLE, NEED, 40, 2, {.memory = {.count = 1, .regions = {{0, 4096, 0, 0}}}}},
    {VHOST_USER_SET_MEM_TABLE, NEED, 40, 1, {.memory = {.count = 1, .regions = {{0, 1ull << 62, 0, 0}}}}},
    {VHOST_USER_SET_MEM_TABLE, NEED, 40, 1, {.memory = {.count = 1, .regions = {{0, 4096, 0, UINT64_MAX}}}}},
    {VHOST_USER_SET_MEM_TABLE, NEED, 8, 1, {.memory = {.count = 1}}},
    {VHOST_USER_SET_BACKEND_REQ_FD, NEED, 0, 0, {0}},
    {VHOST_USER_SET_CONFIG, NEED, 13, 0, {.config = {.offset = 0, .size = 1, .bytes = {1}}}},
    {VHOST_USER_SET_CONFIG, NEED, 13, 0, {.config = {.offset = 32, .size = 1, .bytes = {2}}}},
    {VHOST_USER_SET_CONFIG, NEED, 13, 0, {.config = {.offset = 32, .size = 200}}},
    {VHOST_USER_SET_CONFIG, NEED, 13, 0, {.config = {.offset = UINT32_MAX, .size = 1}}},
    {VHOST_USER_SET_INFLIGHT_FD, NEED, 20, 0, {.inflight = {4096, 0, 1, 8}}},
    {VHOST_USER_SET_INFLIGHT_FD, NEED, 20, 1, {.inflight = {4096, 0, 65535, 1024}}},
    {VHOST_USER_SET_INFLIGHT_FD, NEED, 20, 1, {.inflight = {UINT64_MAX, 0, 1, 8}}},
    {VHOST_USER_SET_INFLIGHT_FD, NEED, 20, 1, {.inflight = {4096, UINT64_MAX - 7, 1, 8}}},
    {VHOST_USER_SET_INFLIGHT_FD, NEED, 20, 1, {.inflight = {4096, 3, 1, 8}}},
    {VHOST_USER_SET_INFLIGHT_FD, NEED, 20, 1, {.inflight = {4096, 0, 0, 0}}},
};

static void refuses_bad_messages(void **state)
{
    (void)state;
    int fds[8];
    fds[0] = memfd_create("hostile", MFD_CLOEXEC);
    assert_int_equal(ftruncate(fds[0], 4096), 0);
    for (unsigned i = 1; i < 8; i++)
        fds[i] = fds[0];
    next_client_works();
    for (size_t i = 0; i < ARRAY_SIZE(bad_messages); i++) {
        const struct bad_message *bad = &bad_messages[i];
        struct vhost_client *c = fixture_client(&fixture, NULL);
        struct vhost_user_message answer;
        works(c, 0);
        assert_int_equal(vhost_client_send(c, bad->request, bad->flags, &bad->p, bad->size, fds, bad->fds), 0);
        int r = vhost_client_receive(c, &answer);
        if (!(r == -EPIPE || r == -ECONNRESET || (r == 0 && answer.header.size == 8 && answer.payload.u64 != 0)))
            fail_msg("message %zu (request %u): %d", i, bad->request, r);
        (void)vhost_client_close(c);
        next_client_works();
    }
    (void)close(fds[0]);
}

// Headers that no message can have end the connection.
static void ends_bad_framing(void **state)
{
    (void)state;
    static const struct vhost_user_header headers[] = {
        {VHOST_USER_GET_FEATURES, VHOST_USER_VERSION, UINT32_MAX},
        {VHOST_USER_GET_FEATURES, VHOST_USER_VERSION, 273},
        {VHOST_USER_GET_FEATURES, 0, 0},
        {VHOST_USER_GET_FEATURES, 2, 0},
        {VHOST_USER_GET_FEATURES, VHOST_USER_VERSION | VHOST_USER_FLAG_REPLY, 0},
    };
    for (size_t i = 0; i < ARRAY_SIZE(headers); i++) {
        struct vhost_client *c = fixture_client(&fixture, NULL);
        struct vhost_user_message answer;
        assert_int_equal(send(c->socket, &headers[i], sizeof(headers[i]), 0), sizeof(headers[i]));
        int r = vhost_client_receive(c, &answer);
        assert_true(r == -EPIPE || r == -ECONNRESET);
        (void)vhost_client_close(c);
        next_client_works();
    }
    // Gone in the middle of a message.
    struct vhost_client *c = fixture_client(&fixture, NULL);
    assert_int_equal(send(c->socket, &headers[0], 5, 0), 5);
    (void)vhost_client_close(c);
    next_client_works();
}

static void configuration_beyond_its_end(void **state)
{
    (void)state;
    struct vhost_client *c = fixture_client(&fixture, NULL);
    const struct vhost_user_config wanted[] = {
        {.offset = 250, .size = 10}, {.offset = UINT32_MAX, .size = 1}, {.offset = 1, .size = UINT32_MAX}};
    for (size_t i = 0; i < ARRAY_SIZE(wanted); i++) {
        struct vhost_user_message answer;
        assert_int_equal(vhost_client_send(c, VHOST_USER_GET_CONFIG, VHOST_USER_VERSION, &wanted[i], 12, NULL, 0), 0);
        assert_int_equal(vhost_client_receive(c, &answer), 0);
        assert_int_equal(answer.header.size, 0);
    }
    works(c, 0);
    (void)vhost_client_close(c);
}

static void random_messages(void **state)
{
    (void)state;
    uint64_t random = test_seed();
    next_client_works();
    for (unsigned round = 0; round < 60; round++) {
        struct vhost_client *c = fixture_client(&fixture, &(struct vhost_client_options){.queues = 2});
        int fds[3] = {c->memory_fd, c->queues[0].kick_fd, c->inflight_fd};
        for (unsigned i = 0; i < 20; i++) {
            uint8_t payload[272];
            for (size_t k = 0; k < sizeof(payload); k++) // mostly small numbers reach further
                payload[k] =
                    test_random(&random) % 4 ? (uint8_t)(test_random(&random) % 3) : (uint8_t)test_random(&random);
            if (test_random(&random) % 2)
                memset(payload + 1, 0, 7);
            static const size_t sizes[] = {0, 8, 8, 8, 8, 13, 20, 24, 40, 40, 72, 104, 264, 268};
            size_t size = sizes[test_random(&random) % ARRAY_SIZE(sizes)];
            int *fd = &fds[test_random(&random) % 3];
            unsigned count = (unsigned)(test_random(&random) % 2);
            uint32_t request = (uint32_t)(test_random(&random) % 36);
            if (vhost_client_send(c, request, VHOST_USER_VERSION, payload, size, fd, count) < 0)
                break;
            vhost_client_submit(c, 0, i % 32, VIRTIO_BLK_T_IN, i, 4096, 0);
            vhost_client_kick(c, 0);
        }
        (void)vhost_client_close(c);
    }
    next_client_works();
}

// ---- rings -----------------------------------------------------------------------------------------------------

static void data_chain(struct vhost_client *c, struct vhost_client_queue *q, uint16_t i)
{
    q->descriptors[i] = (struct vring_desc){vhost_client_guest(c, q->data), 16, VRING_DESC_F_NEXT, (uint16_t)(i + 1)};
}

static void bad_address(struct vhost_client *c, struct vhost_client_queue *q)
{
    (void)c;
    q->descriptors[0] = (struct vring_desc){UINT64_MAX - 100, 4096, 0, 0};
    vhost_client_push(q, 0);
}

static void bad_length(struct vhost_client *c, struct vhost_client_queue *q)
{
    q->descriptors[0] = (struct vring_desc){vhost_client_guest(c, q->data), UINT32_MAX, 0, 0};
    vhost_client_push(q, 0);
}

static void looping_chain(struct vhost_client *c, struct vhost_client_queue *q)
{
    for (uint16_t i = 0; i < q->size; i++)
        data_chain(c, q, i);
    q->descriptors[q->size - 1].next = 0;
    vhost_client_push(q, 0);
}

static void looping_empty_chain(struct vhost_client *c, struct vhost_client_queue *q)
{
    looping_chain(c, q);
    for (uint16_t i = 0; i < q->size; i++)
        q->descriptors[i].len = 0;
}

static void head_beyond_ring(struct vhost_client *c, struct vhost_client_queue *q)
{
    (void)c;
    vhost_client_push(q, q->size);
}

static void index_jump(struct vhost_client *c, struct vhost_client_queue *q)
{
    (void)c;
    q->available_next = (uint16_t)(q->available_next + q->size + 1);
}

static void head_twice(struct vhost_client *c, struct vhost_client_queue *q)
{
    vhost_client_submit(c, q->index, 0, VIRTIO_BLK_T_OUT, 1024, 65536, 0);
    vhost_client_push(q, 0);
}

static void no_status(struct vhost_client *c, struct vhost_client_queue *q)
{
    q->descriptors[0] = (struct vring_desc){vhost_client_guest(c, q->data), 16, 0, 0};
    vhost_client_push(q, 0);
}

static void short_header(struct vhost_client *c, struct vhost_client_queue *q)
{
    data_chain(c, q, 0);
    q->descriptors[0].len = 15;
    q->descriptors[1] = (struct vring_desc){vhost_client_guest(c, q->data), 1, VRING_DESC_F_WRITE, 0};
    vhost_client_push(q, 0);
}

static void wrong_order(struct vhost_client *c, struct vhost_client_queue *q)
{
    data_chain(c, q, 0);
    data_chain(c, q, 1);
    q->descriptors[0].flags |= VRING_DESC_F_WRITE;
    q->descriptors[1].flags = 0;
    vhost_client_push(q, 0);
}

static void table_outside(struct vhost_client *c, struct vhost_client_queue *q)
{
    q->descriptors[0] = (struct vring_desc){c->guest_base - 4096, 48, VRING_DESC_F_INDIRECT, 0};
    vhost_client_push(q, 0);
}

static void table_nested(struct vhost_client *c, struct vhost_client_queue *q)
{
    struct vring_desc *table = (void *)q->control;
    q->descriptors[0] = (struct vring_desc){vhost_client_guest(c, table), 32, VRING_DESC_F_INDIRECT, 0};
    table[0] = q->descriptors[0];
    vhost_client_push(q, 0);
}

static void table_huge(struct vhost_client *c, struct vhost_client_queue *q)
{
    q->descriptors[0] = (struct vring_desc){vhost_client_guest(c, q->control), 0x7ffffff0, VRING_DESC_F_INDIRECT, 0};
    vhost_client_push(q, 0);
}

static void breaks_rings_not_servers(void **state)
{
    (void)state;
    static void (*const attacks[])(struct vhost_client *, struct vhost_client_queue *) = {
        bad_address, bad_length,   looping_chain, looping_empty_chain, head_beyond_ring, index_jump, head_twice,
        no_status,   short_header, wrong_order,   table_outside,       table_nested,     table_huge,
    };
    for (size_t i = 0; i < ARRAY_SIZE(attacks); i++) {
        struct vhost_client *c = fixture_client(&fixture, &(struct vhost_client_options){.queues = 2});
        works(c, 0);
        works(c, 1);
        attacks[i](c, &c->queues[1]);
        vhost_client_kick(c, 1);
        struct pollfd p = {.fd = c->queues[1].error_fd, .events = POLLIN};
        if (poll(&p, 1, 10000) != 1)
            fail_msg("attack %zu was not noticed", i);
        works(c, 0); // the other queue lives
        uint16_t base;
        assert_int_equal(vhost_client_stop_queue(c, 1, &base), 0);
        if (i != 5) { // and so does this one, once it is set up anew
            c->queues[1].last_used = c->queues[1].used->idx;
            assert_int_equal(vhost_client_start_queue(c, 1, base), 0);
        }
        (void)vhost_client_close(c);
        next_client_works();
    }
}

// Rings full of random bytes that keep changing while the server looks at them.
static void random_rings(void **state)
{
    (void)state;
    uint64_t random = test_seed();
    for (unsigned round = 0; round < 40; round++) {
        struct vhost_client *c = fixture_client(&fixture, &(struct vhost_client_options){.queues = 2, .depth = 8});
        struct vhost_client_queue *q = &c->queues[0];
        for (unsigned i = 0; i < 200; i++) {
            struct vring_desc *d = &q->descriptors[test_random(&random) % q->size];
            d->addr = vhost_client_guest(c, q->control) + (test_random(&random) & 0xffff);
            d->len = (uint32_t)(test_random(&random) & 0x3f0);
            d->flags = (uint16_t)(test_random(&random) & 7);
            d->next = (uint16_t)(test_random(&random) % q->size);
            q->control[test_random(&random) % 4096] = (uint8_t)(test_random(&random) % 16);
            if (i % 4 == 0) {
                vhost_client_push(q, (uint16_t)(test_random(&random) % q->size));
                vhost_client_kick(c, 0);
            }
        }
        works(c, 1);
        (void)vhost_client_close(c);
    }
    next_client_works();
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(refuses_bad_messages), T(ends_bad_framing),         T(configuration_beyond_its_end),
        T(random_messages),      T(breaks_rings_not_servers), T(random_rings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
