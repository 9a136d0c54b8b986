// SPDX-License-Identifier: Apache-2.0
/* The gate and grace periods, with queues at work in other threads; posting; the limit on queues. */
#include "fixture.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "backends/format/layer.h"

#define SIZE (1u << 20)

struct worker {
    struct image *image;
    pthread_t thread;
    _Atomic bool stop;
    _Atomic unsigned completed;
    uint64_t place;
};

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct client c;
    uint8_t *a = aligned(8192);
    client_open(&c, w->image);
    for (unsigned i = 0; !atomic_load(&w->stop); i++) {
        bool odd = i % 16 == 0;
        int r = client_op(&c, i % 3 ? IMAGE_WRITE : IMAGE_READ, 0, w->place + (odd ? 5 : 0), a, 4096);
        if (r == 0)
            atomic_fetch_add(&w->completed, 1);
        if (i % 100 == 99) { /* queues come and go as well */
            client_close(&c);
            client_open(&c, w->image);
        }
    }
    client_close(&c);
    free(a);
    return NULL;
}

static void start_workers(struct worker *w, unsigned count, struct image *image)
{
    for (unsigned i = 0; i < count; i++) {
        memset(&w[i], 0, sizeof(w[i]));
        w[i].image = image;
        w[i].place = i * 65536;
        assert_int_equal(pthread_create(&w[i].thread, NULL, worker_main, &w[i]), 0);
    }
}

static void stop_workers(struct worker *w, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        atomic_store(&w[i].stop, true);
    for (unsigned i = 0; i < count; i++)
        (void)pthread_join(w[i].thread, NULL);
}

static void drained_means_nothing_moves(void **state)
{
    (void)state;
    struct counting counting;
    struct image *image = counted_image(&counting, SIZE);
    struct worker w[3];
    start_workers(w, 3, image);
    for (int i = 0; i < 100; i++) {
        image_drain_begin(image);
        unsigned before = atomic_load(&counting.writes);
        for (int k = 0; k < 50; k++)
            (void)sched_yield();
        assert_int_equal(atomic_load(&counting.writes), before);
        image_drain_end(image);
        unsigned completed = atomic_load(&w[0].completed);
        while (atomic_load(&w[0].completed) == completed)
            (void)sched_yield();
    }
    stop_workers(w, 3);
    image_drain_begin(image);
    image_drain_end(image);
    image_done(image);
}

static void grace_waits_for_what_was_in_flight(void **state)
{
    (void)state;
    struct image *image = raw_image(NULL, SIZE, false);
    struct worker w[3];
    image_grace(image); /* no queues: at once */
    start_workers(w, 3, image);
    for (int i = 0; i < 300; i++)
        image_grace(image);
    stop_workers(w, 3);
    image_grace(image);
    image_done(image);
}

struct held {
    struct io_seam seam; /* first */
    struct io_op *op;
};

static bool hold_one(struct io_seam *seam, struct io_loop *loop, struct io_op *op)
{
    struct held *h = (struct held *)seam;
    (void)loop;
    if (h->op)
        return false;
    h->op = op;
    return true;
}

struct grace_thread {
    struct image *image;
    _Atomic bool done;
};

static void *grace_main(void *arg)
{
    struct grace_thread *g = arg;
    image_grace(g->image);
    atomic_store(&g->done, true);
    return NULL;
}

static void grace_ends_with_the_old_request_not_with_new_ones(void **state)
{
    (void)state;
    struct held held = {.seam = {.hold = hold_one}};
    struct image_layer layer = {"raw", scratch_file(NULL, SIZE, false)};
    struct image_options options = {0};
    struct image *image = NULL;
    io_file_set_seam(layer.file, &held.seam);
    assert_int_equal(image_open(&layer, 1, &options, &image, NULL), 0);
    struct client c;
    uint8_t *a = aligned(8192);
    _Atomic unsigned left = 1;
    struct iovec iov = {a, 4096};
    struct many old = {.request = {.op = IMAGE_WRITE, .length = 4096, .iov = &iov, .iovcnt = 1, .done = many_done},
                       .left = &left};
    client_open(&c, image);
    image_submit(c.queue, &old.request);
    struct grace_thread g = {image, false};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, grace_main, &g), 0);
    for (int i = 0; i < 200; i++) {
        assert_int_equal(client_op(&c, IMAGE_READ, 0, 4096, a + 4096, 4096), 0);
        assert_false(atomic_load(&g.done));
    }
    io_seam_release(c.loop, held.op);
    while (left || !atomic_load(&g.done))
        assert_true(io_loop_turn(c.loop, 1) >= 0);
    (void)pthread_join(thread, NULL);
    assert_int_equal(old.result, 0);
    client_close(&c);
    image_done(image);
    free(a);
}

struct posted {
    struct io_task task; /* first */
    bool ran;
};

static void posted_run(struct io_task *task)
{
    ((struct posted *)task)->ran = true;
}

static void posting_needs_a_queue(void **state)
{
    (void)state;
    struct image *image = raw_image(NULL, SIZE, false);
    struct posted task = {.task.run = posted_run};
    struct client c;
    assert_false(image_post(image, &task.task));
    client_open(&c, image);
    assert_true(image_post(image, &task.task));
    assert_true(io_loop_turn(c.loop, 1000) >= 0);
    assert_true(task.ran);
    client_close(&c);
    image_done(image);
}

static void too_many_queues_are_refused(void **state)
{
    (void)state;
    struct image *image = raw_image(NULL, SIZE, false);
    struct image_queue *queues[65];
    struct client c;
    struct error err = ERROR_INIT;
    client_open(&c, image);
    for (int i = 0; i < 63; i++)
        assert_int_equal(image_queue_create(image, c.loop, &queues[i], NULL), 0);
    assert_int_equal(image_queue_create(image, c.loop, &queues[63], &err), -EMFILE);
    for (int i = 0; i < 63; i++)
        assert_null(image_queue_destroy(queues[i]));
    client_close(&c);
    image_done(image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(drained_means_nothing_moves),
        cmocka_unit_test(grace_waits_for_what_was_in_flight),
        cmocka_unit_test(grace_ends_with_the_old_request_not_with_new_ones),
        cmocka_unit_test(posting_needs_a_queue),
        cmocka_unit_test(too_many_queues_are_refused),
    };
    return RUN_ON_ENGINES(tests);
}
