// SPDX-License-Identifier: Apache-2.0
// The export as a VMM uses it: configuration, resize, write cache, stop and start, reconnect, resumption.
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "fixture.h"

#define DISK (16 * MIB)

static struct fixture fixture;

static int setup(void **state)
{
    fixture_start(&fixture, "raw", DISK, false);
    *state = &fixture;
    return 0;
}

static int setup_read_only(void **state)
{
    fixture_start(&fixture, "raw", DISK, true);
    *state = &fixture;
    return 0;
}

static int teardown(void **state)
{
    fixture_stop(*state);
    return 0;
}

static void ok(struct vhost_client *c, uint32_t type, uint64_t sector, size_t length)
{
    assert_int_equal(vhost_client_do(c, 0, type, sector, length, 0), VIRTIO_BLK_S_OK);
}

static void describes_itself(void **state)
{
    struct vhost_client *c = fixture_client(*state, NULL);
    struct virtio_blk_config config;
    assert_int_equal(vhost_client_config(c, &config), 0);
    assert_int_equal(config.capacity, DISK / 512);
    assert_int_equal(config.seg_max, 126);
    assert_int_equal(config.blk_size, 512);
    assert_int_equal(config.wce, 1); // a guest that sees 0 sends no flushes
    assert_int_equal(config.num_queues, FIXTURE_QUEUES);
    assert_int_equal(c->server_queues, FIXTURE_QUEUES);
    assert_true(c->features & (1u << VIRTIO_BLK_F_FLUSH));
    assert_false(c->features & (1u << VIRTIO_BLK_F_RO));
    ok(c, VIRTIO_BLK_T_GET_ID, 0, 20);
    assert_string_equal((char *)vhost_client_buffer(c, 0, 0), "serial-0001");
    struct export_stats stats;
    fixture.export->ops->stats(fixture.export, &stats);
    assert_int_equal(stats.clients, 1);
    (void)vhost_client_close(c);
}

static void refuses_writes_when_read_only(void **state)
{
    struct vhost_client *c = fixture_client(*state, NULL);
    assert_true(c->features & (1u << VIRTIO_BLK_F_RO));
    ok(c, VIRTIO_BLK_T_IN, 0, 4096);
    assert_int_equal(vhost_client_do(c, 0, VIRTIO_BLK_T_OUT, 0, 4096, 0), VIRTIO_BLK_S_IOERR);
    assert_int_equal(vhost_client_do(c, 0, VIRTIO_BLK_T_DISCARD, 0, 4096, 0), VIRTIO_BLK_S_IOERR);
    (void)vhost_client_close(c);
}

static void ends_of_disk(void **state)
{
    struct vhost_client *c = fixture_client(*state, NULL);
    ok(c, VIRTIO_BLK_T_IN, DISK / 512 - 8, 4096);
    assert_int_equal(vhost_client_do(c, 0, VIRTIO_BLK_T_IN, DISK / 512 - 7, 4096, 0), VIRTIO_BLK_S_IOERR);
    assert_int_equal(vhost_client_do(c, 0, VIRTIO_BLK_T_OUT, DISK / 512, 4096, 0), VIRTIO_BLK_S_IOERR);
    assert_int_equal(vhost_client_do(c, 0, VIRTIO_BLK_T_OUT, UINT64_MAX / 512, 4096, 0), VIRTIO_BLK_S_IOERR);
    assert_int_equal(vhost_client_do(c, 0, VIRTIO_BLK_T_WRITE_ZEROES, DISK / 512, 4096, 0), VIRTIO_BLK_S_IOERR);
    ok(c, VIRTIO_BLK_T_IN, 0, 4096);
    (void)vhost_client_close(c);
}

static void announces_growth(void **state)
{
    struct fixture *f = *state;
    struct vhost_client *c = fixture_client(f, NULL);
    struct virtio_blk_config config;
    struct error err = ERROR_INIT;
    assert_int_equal(image_resize(f->image, 2 * DISK, &err), 0);
    f->export->ops->resized(f->export, 2 * DISK);
    assert_int_equal(vhost_client_wait_config_change(c), 0);
    assert_int_equal(vhost_client_config(c, &config), 0);
    assert_int_equal(config.capacity, 2 * DISK / 512);
    ok(c, VIRTIO_BLK_T_OUT, DISK / 512 + 8, 4096);
    (void)vhost_client_close(c);
    f->export->ops->resized(f->export, 2 * DISK); // nobody listens
}

static unsigned flushes(const struct fixture *f)
{
    return __atomic_load_n(&f->flushes, __ATOMIC_RELAXED);
}

static void write_through_when_asked(void **state)
{
    struct fixture *f = *state;
    struct vhost_client *c = fixture_client(f, NULL);
    struct virtio_blk_config config;
    unsigned before = flushes(f);
    ok(c, VIRTIO_BLK_T_OUT, 0, 4096);
    assert_int_equal(flushes(f), before);
    ok(c, VIRTIO_BLK_T_FLUSH, 0, 0);
    assert_true(flushes(f) > before);
    assert_int_equal(vhost_client_set_write_cache(c, false), 0);
    assert_int_equal(vhost_client_config(c, &config), 0);
    assert_int_equal(config.wce, 0);
    before = flushes(f);
    ok(c, VIRTIO_BLK_T_OUT, 8, 4096);
    assert_true(flushes(f) > before);
    (void)vhost_client_close(c);

    // A driver that knows no flush must not need one; and the next driver finds the default again.
    const struct vhost_client_options plain = {.drop_features = 1u << VIRTIO_BLK_F_FLUSH};
    c = fixture_client(f, &plain);
    assert_int_equal(vhost_client_config(c, &config), 0);
    assert_int_equal(config.wce, 1);
    before = flushes(f);
    ok(c, VIRTIO_BLK_T_OUT, 16, 4096);
    assert_true(flushes(f) > before);
    (void)vhost_client_close(c);
}

// Fill all slots of a queue with reads or writes and show them.
static void fill_queue(struct vhost_client *c, unsigned queue, uint32_t type)
{
    for (unsigned slot = 0; slot < c->options.depth; slot++)
        vhost_client_submit(c, queue, slot, type, (uint64_t)slot * 128, c->options.slot_bytes, 0);
    vhost_client_kick(c, queue);
}

static unsigned drain_queue(struct vhost_client *c, unsigned queue)
{
    unsigned slot, done = 0;
    uint8_t status;
    while (done < c->options.depth) {
        if (!vhost_client_wait(c, queue, 10000))
            break;
        while (vhost_client_poll(c, queue, &slot, &status)) {
            assert_int_equal(status, VIRTIO_BLK_S_OK);
            done++;
        }
    }
    return done;
}

static void stops_and_starts_queues(void **state)
{
    struct vhost_client *c = fixture_client(*state, &(struct vhost_client_options){.queues = 2});
    for (unsigned round = 0; round < 20; round++) {
        uint16_t base;
        fill_queue(c, 1, round & 1 ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT);
        assert_int_equal(vhost_client_stop_queue(c, 1, &base), 0);
        // What was taken is answered; what was not is still in the ring.
        assert_int_equal(base, c->queues[1].used->idx);
        ok(c, VIRTIO_BLK_T_IN, 0, 4096);
        assert_int_equal(vhost_client_start_queue(c, 1, base), 0);
        assert_int_equal(drain_queue(c, 1), c->options.depth);
    }
    (void)vhost_client_close(c);
}

static void takes_new_memory_under_load(void **state)
{
    struct vhost_client *c = fixture_client(*state, &(struct vhost_client_options){.queues = 2});
    for (unsigned round = 0; round < 10; round++) {
        fill_queue(c, 0, VIRTIO_BLK_T_OUT);
        fill_queue(c, 1, VIRTIO_BLK_T_IN);
        assert_int_equal(vhost_client_share_memory(c), 0);
        const uint64_t index = 0;
        assert_int_equal(vhost_client_request(c, VHOST_USER_SET_VRING_CALL, &index, 8, &c->queues[0].call_fd, 1), 0);
        assert_int_equal(drain_queue(c, 0), c->options.depth);
        assert_int_equal(drain_queue(c, 1), c->options.depth);
    }
    (void)vhost_client_close(c);
}

static void resets_device(void **state)
{
    struct vhost_client *c = fixture_client(*state, NULL);
    ok(c, VIRTIO_BLK_T_IN, 0, 4096);
    assert_int_equal(vhost_client_request(c, VHOST_USER_RESET_DEVICE, NULL, 0, NULL, 0), 0);
    struct vhost_client_queue *q = &c->queues[0];
    q->available->idx = q->used->idx = 0;
    q->available_next = q->available_shown = q->last_used = 0;
    assert_int_equal(vhost_client_start_queue(c, 0, 0), 0);
    ok(c, VIRTIO_BLK_T_IN, 0, 4096);
    (void)vhost_client_close(c);
}

static void reconnects_under_load(void **state)
{
    struct vhost_client *c = fixture_client(*state, &(struct vhost_client_options){.queues = 2, .depth = 16});
    for (unsigned round = 0; round < 20; round++) {
        fill_queue(c, 0, VIRTIO_BLK_T_OUT);
        fill_queue(c, 1, VIRTIO_BLK_T_IN);
        vhost_client_drop(c);
        assert_int_equal(vhost_client_reconnect(c), 0);
        assert_int_equal(drain_queue(c, 0), 16);
        assert_int_equal(drain_queue(c, 1), 16);
        for (unsigned q = 0; q < 2; q++) // each exactly once
            assert_int_equal(c->queues[q].used->idx, c->queues[q].available_next);
    }
    (void)vhost_client_close(c);
}

// As a predecessor leaves them that was killed: taken from the available ring and marked, not answered.
static void resumes_what_was_in_flight(void **state)
{
    struct vhost_client *c = fixture_client(*state, &(struct vhost_client_options){.depth = 8});
    ok(c, VIRTIO_BLK_T_IN, 0, 4096);
    vhost_client_drop(c);
    uint8_t *region = mmap(NULL, c->inflight.size, PROT_READ | PROT_WRITE, MAP_SHARED, c->inflight_fd, 0);
    assert_ptr_not_equal(region, MAP_FAILED);
    assert_int_equal(load_le16(region + 8), 1); // the server used it
    for (unsigned slot = 1; slot < 6; slot++) {
        memset(vhost_client_buffer(c, 0, slot), (int)slot, 4096);
        vhost_client_submit(c, 0, slot, VIRTIO_BLK_T_OUT, slot * 8, 4096, 0);
        if (slot < 4) { // 4 and 5 were not taken yet
            region[16 + 16 * slot] = 1;
            store_le64(region + 16 + 16 * slot + 8, 100 + slot);
        }
    }
    vhost_client_kick(c, 0);
    assert_int_equal(vhost_client_reconnect(c), 0);
    unsigned slot, seen = 0;
    uint8_t status;
    while (seen != 0x3e && vhost_client_wait(c, 0, 10000))
        while (vhost_client_poll(c, 0, &slot, &status)) {
            assert_int_equal(status, VIRTIO_BLK_S_OK);
            assert_false(seen & (1u << slot));
            seen |= 1u << slot;
        }
    assert_int_equal(seen, 0x3e);
    for (slot = 1; slot < 6; slot++) {
        ok(c, VIRTIO_BLK_T_IN, slot * 8, 4096);
        assert_int_equal(vhost_client_buffer(c, 0, 0)[4095], slot);
    }
    assert_int_equal(c->queues[0].used->idx, c->queues[0].available_next);
    (void)munmap(region, c->inflight.size);
    (void)vhost_client_close(c);
}

static void ends_with_clients_and_requests(void **state)
{
    (void)state;
    unsigned fds = count_fds();
    for (unsigned round = 0; round < 10; round++) {
        struct fixture f;
        fixture_start(&f, "raw", DISK, false);
        struct vhost_client *c = fixture_client(&f, &(struct vhost_client_options){.queues = 3});
        for (unsigned q = 0; q < 3; q++)
            fill_queue(c, q, VIRTIO_BLK_T_OUT);
        fixture_stop(&f);
        (void)vhost_client_close(c);
    }
    assert_int_equal(count_fds(), fds);
}

static void leaves_no_descriptors_open(void **state)
{
    struct vhost_client *c = fixture_client(*state, NULL);
    unsigned fds = count_fds();
    for (unsigned round = 0; round < 10; round++)
        assert_int_equal(vhost_client_reconnect(c), 0);
    assert_int_equal(count_fds(), fds);
    (void)vhost_client_close(c);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(describes_itself),
        cmocka_unit_test_setup_teardown(refuses_writes_when_read_only, setup_read_only, teardown),
        T(ends_of_disk),
        T(announces_growth),
        T(write_through_when_asked),
        T(stops_and_starts_queues),
        T(takes_new_memory_under_load),
        T(resets_device),
        T(reconnects_under_load),
        T(resumes_what_was_in_flight),
        cmocka_unit_test(ends_with_clients_and_requests),
        T(leaves_no_descriptors_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
