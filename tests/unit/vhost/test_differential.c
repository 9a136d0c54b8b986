// SPDX-License-Identifier: Apache-2.0
// Random requests on several queues against a plain array of bytes, in every shape that a driver may choose.
//
// Each queue has its own part of the disk, cut into zones; requests in flight at the same time are in different zones,
// so each has one right answer. A discarded range may read as before or as zeros: it is taken as it is read.
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "fixture.h"

#define ZONE ((uint64_t)65536)
#define ZONES 24
#define DISK (FIXTURE_QUEUES * ZONES * ZONE)
#define REQUESTS 1500

struct flight {
    bool busy;
    uint32_t type;
    unsigned zone;
    uint64_t offset, length; // in the disk
};

struct run {
    struct vhost_client *client;
    uint8_t *model, *discarded; // one byte for each of the disk
    struct flight flights[FIXTURE_QUEUES][32];
    bool zone_busy[FIXTURE_QUEUES][ZONES];
    uint64_t random;
};

static void start_request(struct run *r, unsigned queue, unsigned slot)
{
    static const uint32_t types[] = {VIRTIO_BLK_T_IN,      VIRTIO_BLK_T_IN,   VIRTIO_BLK_T_OUT,
                                     VIRTIO_BLK_T_OUT,     VIRTIO_BLK_T_OUT,  VIRTIO_BLK_T_WRITE_ZEROES,
                                     VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH};
    unsigned zone = (unsigned)(test_random(&r->random) % ZONES);
    if (r->zone_busy[queue][zone])
        return;
    struct flight *f = &r->flights[queue][slot];
    uint64_t sectors = ZONE / 512;
    uint64_t first = test_random(&r->random) % sectors;
    uint64_t count = 1 + test_random(&r->random) % (sectors - first);
    if (test_random(&r->random) & 1) { // what guests mostly do
        first &= ~UINT64_C(7);
        count = MIN(align_up(count, 8), sectors - first);
    }
    *f = (struct flight){
        .busy = true,
        .type = types[test_random(&r->random) % ARRAY_SIZE(types)],
        .zone = zone,
        .offset = (queue * ZONES + zone) * ZONE + first * 512,
        .length = count * 512,
    };
    r->zone_busy[queue][zone] = true;
    uint8_t *data = vhost_client_buffer(r->client, queue, slot);
    if (f->type == VIRTIO_BLK_T_OUT) {
        for (size_t i = 0; i < f->length / 8; i++)
            ((uint64_t *)(void *)data)[i] = test_random(&r->random);
        memcpy(r->model + f->offset, data, f->length);
        memset(r->discarded + f->offset, 0, f->length);
    } else if (f->type == VIRTIO_BLK_T_WRITE_ZEROES) {
        memset(r->model + f->offset, 0, f->length);
        memset(r->discarded + f->offset, 0, f->length);
    } else if (f->type == VIRTIO_BLK_T_DISCARD) {
        memset(r->discarded + f->offset, 1, f->length);
    } else {
        memset(data, 0xa5, f->length);
    }
    uint32_t flags = f->type == VIRTIO_BLK_T_WRITE_ZEROES ? (uint32_t)(test_random(&r->random) & 1) : 0;
    vhost_client_submit(r->client, queue, slot, f->type, f->offset / 512, f->length, flags);
}

static void compare(struct run *r, uint64_t offset, const uint8_t *data, uint64_t length)
{
    for (uint64_t i = 0; i < length; i++) {
        uint64_t at = offset + i;
        if (r->discarded[at] && (data[i] == 0 || data[i] == r->model[at])) {
            r->model[at] = data[i];
            r->discarded[at] = 0;
        }
        if (data[i] != r->model[at])
            fail_msg("byte %lu is %u, expected %u", at, data[i], r->model[at]);
    }
}

static unsigned finish_requests(struct run *r, unsigned queue)
{
    unsigned slot, count = 0;
    uint8_t status;
    while (vhost_client_poll(r->client, queue, &slot, &status)) {
        struct flight *f = &r->flights[queue][slot];
        assert_true(f->busy);
        assert_int_equal(status, VIRTIO_BLK_S_OK);
        if (f->type == VIRTIO_BLK_T_IN)
            compare(r, f->offset, vhost_client_buffer(r->client, queue, slot), f->length);
        f->busy = false;
        r->zone_busy[queue][f->zone] = false;
        count++;
    }
    return count;
}

static void run_requests(struct run *r)
{
    unsigned done = 0, started = 0;
    unsigned queues = r->client->options.queues;
    unsigned depth = r->client->options.depth;
    while (done < REQUESTS) {
        for (unsigned q = 0; q < queues; q++) {
            for (unsigned slot = 0; slot < depth && started < REQUESTS; slot++) {
                if (r->flights[q][slot].busy || (test_random(&r->random) & 1))
                    continue;
                start_request(r, q, slot);
                started += r->flights[q][slot].busy;
            }
            vhost_client_kick(r->client, q);
        }
        unsigned before = done;
        for (unsigned q = 0; q < queues; q++)
            done += finish_requests(r, q);
        bool any = false;
        unsigned waiting = 0;
        for (unsigned q = 0; q < queues && done == before; q++) {
            for (unsigned slot = 0; slot < depth && !any; slot++)
                any = r->flights[q][slot].busy;
            waiting = q;
            if (any)
                break;
        }
        if (any)
            assert_true(vhost_client_wait(r->client, waiting, 10000));
    }
}

static void differential(const char *format, const struct vhost_client_options *options)
{
    struct fixture f;
    struct run r = {.random = test_seed(), .model = calloc(1, DISK), .discarded = calloc(1, DISK)};
    uint8_t *data = malloc(ZONE);
    fixture_start(&f, format, DISK, false);
    r.client = fixture_client(&f, options);
    run_requests(&r);
    for (uint64_t at = 0; at < DISK; at += ZONE) { // all of it, by a request
        assert_int_equal(vhost_client_do(r.client, 0, VIRTIO_BLK_T_IN, at / 512, ZONE, 0), VIRTIO_BLK_S_OK);
        compare(&r, at, vhost_client_buffer(r.client, 0, 0), ZONE);
    }
    (void)vhost_client_close(r.client);
    struct export_stats stats;
    f.export->ops->stats(f.export, &stats);
    assert_int_equal(stats.errors, 0);
    assert_true(stats.reads > 0 && stats.writes > 0);
    if (!strcmp(format, "raw")) { // and by the file itself
        CLEANUP_CLOSE int fd = open(f.path, O_RDONLY | O_CLOEXEC);
        for (uint64_t at = 0; at < DISK; at += ZONE) {
            assert_int_equal(pread(fd, data, ZONE, (off_t)at), ZONE);
            compare(&r, at, data, ZONE);
        }
    }
    fixture_stop(&f);
    free(data);
    free(r.model);
    free(r.discarded);
}

static void indirect_event_index(void **state)
{
    (void)state;
    differential("raw", &(struct vhost_client_options){.queues = 3, .depth = 16, .segments = 5});
}

static void indirect_no_event_index(void **state)
{
    (void)state;
    differential("raw", &(struct vhost_client_options){.queues = 2, .depth = 8, .segments = 1, .no_event_index = true});
}

static void direct_chains(void **state)
{
    (void)state;
    differential("raw", &(struct vhost_client_options){.queues = 3, .depth = 16, .segments = 6, .direct = true});
}

static void direct_no_event_index_no_inflight(void **state)
{
    (void)state;
    differential("raw", &(struct vhost_client_options){
                            .depth = 16, .segments = 2, .direct = true, .no_event_index = true, .no_inflight = true});
}

static void many_segments(void **state)
{
    (void)state;
    differential("raw", &(struct vhost_client_options){.queues = 2, .depth = 32, .segments = 120});
}

static void several_threads(void **state)
{
    (void)state;
    assert_int_equal(setenv("PLATTER_VHOST_THREADS", "3", 1), 0);
    differential("raw", &(struct vhost_client_options){.queues = 3, .depth = 16, .segments = 3});
    (void)unsetenv("PLATTER_VHOST_THREADS");
}

// Hosts without io_uring.
static void threads_engine(void **state)
{
    (void)state;
    assert_int_equal(setenv("PLATTER_IO_ENGINE", "threads", 1), 0);
    differential("raw", &(struct vhost_client_options){.queues = 3, .depth = 16, .segments = 3});
    (void)unsetenv("PLATTER_IO_ENGINE");
}

static void qcow2(void **state)
{
    (void)state;
    differential("qcow2", &(struct vhost_client_options){.queues = 3, .depth = 16, .segments = 5});
}

static void qcow2_several_threads(void **state)
{
    (void)state;
    assert_int_equal(setenv("PLATTER_VHOST_THREADS", "3", 1), 0);
    differential("qcow2", &(struct vhost_client_options){.queues = 3, .depth = 16, .segments = 2, .direct = true});
    (void)unsetenv("PLATTER_VHOST_THREADS");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(indirect_event_index),  cmocka_unit_test(indirect_no_event_index),
        cmocka_unit_test(direct_chains),         cmocka_unit_test(direct_no_event_index_no_inflight),
        cmocka_unit_test(many_segments),         cmocka_unit_test(several_threads),
        cmocka_unit_test(threads_engine),        cmocka_unit_test(qcow2),
        cmocka_unit_test(qcow2_several_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
