// SPDX-License-Identifier: Apache-2.0
/* Requests that find no space: waiting, going on, being told not to wait, and what passes them by meanwhile. */
#include "fixture.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "backends/format/layer.h"

#define SIZE (1 << 20)

struct pending {
    struct image_request request; /* first */
    struct iovec iov;
    int result;
    bool done;
};

static void pending_done(struct image_request *request, int result)
{
    struct pending *p = (struct pending *)request;
    p->result = result;
    p->done = true;
}

static void start_write(struct client *c, struct pending *p, uint32_t flags, uint64_t offset, void *data, size_t length)
{
    *p = (struct pending){.iov = {data, length}};
    p->request = (struct image_request){.op = IMAGE_WRITE,
                                        .flags = flags,
                                        .offset = offset,
                                        .length = length,
                                        .iov = &p->iov,
                                        .iovcnt = 1,
                                        .done = pending_done};
    image_submit(c->queue, &p->request);
}

static unsigned waiting(struct image *image)
{
    struct image_condition condition;
    image_condition(image, &condition);
    return condition.waiting;
}

static void until_waiting(struct client *c, struct image *image, unsigned count)
{
    while (waiting(image) != count)
        assert_true(io_loop_turn(c->loop, 10000) >= 0);
}

static int until_done(struct client *c, struct pending *p)
{
    while (!p->done)
        assert_true(io_loop_turn(c->loop, 10000) >= 0);
    return p->result;
}

static void writes_wait_and_go_on(void **state)
{
    (void)state;
    struct counting counting;
    struct image *image = counted_image(&counting, SIZE);
    struct client c;
    struct pending p[2];
    uint8_t *data = aligned(8192), *back = aligned(8192);
    client_open(&c, image);
    memset(data, 0x5a, 8192);
    image_wait_for_space(image, true);
    counting.fail_write = -ENOSPC;
    start_write(&c, &p[0], 0, 4096, data, 4096);
    start_write(&c, &p[1], IMAGE_FUA, 65536, data, 8192);
    until_waiting(&c, image, 2);
    assert_int_equal(client_op(&c, IMAGE_READ, 0, 4096, back, 4096), 0);
    assert_int_equal(client_op(&c, IMAGE_FLUSH, 0, 0, NULL, 0), 0);
    assert_false(p[0].done || p[1].done);
    counting.fail_write = 0;
    assert_int_equal(until_done(&c, &p[0]), 0);
    assert_int_equal(until_done(&c, &p[1]), 0);
    assert_int_equal(waiting(image), 0);
    assert_int_equal(client_op(&c, IMAGE_READ, 0, 65536, back, 8192), 0);
    assert_memory_equal(back, data, 8192);
    struct image_condition condition;
    image_condition(image, &condition);
    assert_int_equal(condition.refused, 0);
    assert_int_equal(condition.failed, 0);
    client_close(&c);
    image_done(image);
    free(data);
    free(back);
}

static void a_wait_can_be_ended(void **state)
{
    (void)state;
    struct counting counting;
    struct image *image = counted_image(&counting, SIZE);
    struct client c;
    struct pending p;
    uint8_t *data = aligned(4096);
    client_open(&c, image);
    counting.fail_write = -ENOSPC;
    assert_int_equal(client_op(&c, IMAGE_WRITE, 0, 0, data, 4096), -ENOSPC); /* not unless it is asked for */
    image_wait_for_space(image, true);
    start_write(&c, &p, 0, 0, data, 4096);
    until_waiting(&c, image, 1);
    image_wait_for_space(image, false);
    assert_int_equal(until_done(&c, &p), -ENOSPC);
    image_wait_for_space(image, true);
    start_write(&c, &p, 0, 0, data, 4096);
    until_waiting(&c, image, 1);
    image_queue_refuse_wait(c.queue, true);
    assert_int_equal(until_done(&c, &p), -ENOSPC);
    assert_int_equal(client_op(&c, IMAGE_WRITE, 0, 0, data, 4096), -ENOSPC);
    image_queue_refuse_wait(c.queue, false);
    start_write(&c, &p, 0, 0, data, 4096);
    until_waiting(&c, image, 1);
    counting.fail_write = 0;
    assert_int_equal(until_done(&c, &p), 0);
    assert_int_equal(waiting(image), 0);
    client_close(&c);
    image_done(image);
    free(data);
}

struct drainer {
    pthread_t thread;
    struct image *image;
    struct client *client;
};

static void *drain_it(void *argument)
{
    struct drainer *d = argument;
    image_drain_begin(d->image);
    image_drain_end(d->image);
    io_loop_stop(d->client->loop);
    return NULL;
}

/* Unaligned writes own the image while they run: those that wait must not. */
static void a_drain_passes_what_waits(void **state)
{
    (void)state;
    struct counting counting;
    struct image *image = counted_image(&counting, SIZE);
    struct client c;
    struct pending p[2];
    uint8_t *data = aligned(4096);
    client_open(&c, image);
    image_wait_for_space(image, true);
    counting.fail_write = -ENOSPC;
    start_write(&c, &p[0], 0, 8192, data, 4096);
    start_write(&c, &p[1], 0, 5, data, 100);
    until_waiting(&c, image, 2);
    struct drainer d = {.image = image, .client = &c};
    assert_int_equal(pthread_create(&d.thread, NULL, drain_it, &d), 0);
    assert_int_equal(io_loop_run(c.loop), 0);
    assert_int_equal(pthread_join(d.thread, NULL), 0);
    assert_int_equal(waiting(image), 2);
    counting.fail_write = 0;
    assert_int_equal(until_done(&c, &p[0]), 0);
    assert_int_equal(until_done(&c, &p[1]), 0);
    client_close(&c);
    image_done(image);
    free(data);
}

/* What an fsync says is final, also when it says that there is no space. */
static void a_flush_without_space_is_a_failed_flush(void **state)
{
    (void)state;
    struct counting counting;
    struct image *image = counted_image(&counting, SIZE);
    struct client c;
    uint8_t *data = aligned(4096);
    client_open(&c, image);
    image_wait_for_space(image, true);
    counting.fail_flush = -ENOSPC;
    assert_int_equal(client_op(&c, IMAGE_FLUSH, 0, 0, NULL, 0), -EIO);
    assert_int_equal(image_failed(image), -EIO);
    assert_int_equal(client_op(&c, IMAGE_WRITE, 0, 0, data, 4096), -EIO);
    assert_int_equal(client_op(&c, IMAGE_FLUSH, 0, 0, NULL, 0), -EIO);
    assert_int_equal(client_op(&c, IMAGE_READ, 0, 0, data, 4096), 0);
    assert_int_equal(waiting(image), 0);
    client_close(&c);
    (void)image_close(image, NULL);
    free(data);
}

/* Those that wait when the image fails end with its error. */
static void a_failed_image_waits_for_nothing(void **state)
{
    (void)state;
    struct counting counting;
    struct image *image = counted_image(&counting, SIZE);
    struct client c;
    struct pending p;
    uint8_t *data = aligned(4096);
    client_open(&c, image);
    image_wait_for_space(image, true);
    counting.fail_write = -ENOSPC;
    start_write(&c, &p, 0, 0, data, 4096);
    until_waiting(&c, image, 1);
    counting.fail_flush = -EIO;
    assert_int_equal(client_op(&c, IMAGE_FLUSH, 0, 0, NULL, 0), -EIO);
    assert_int_equal(until_done(&c, &p), -EIO);
    assert_int_equal(waiting(image), 0);
    client_close(&c);
    (void)image_close(image, NULL);
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_wait_and_go_on),
        cmocka_unit_test(a_wait_can_be_ended),
        cmocka_unit_test(a_drain_passes_what_waits),
        cmocka_unit_test(a_flush_without_space_is_a_failed_flush),
        cmocka_unit_test(a_failed_image_waits_for_nothing),
    };
    return RUN_ON_ENGINES(tests);
}
