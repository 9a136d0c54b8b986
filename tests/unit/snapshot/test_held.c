// SPDX-License-Identifier: Apache-2.0
/*
 * Snapshots while the caller holds the image drained, as those of a group are taken: no write passes between the begin of the
 * hold and the snapshot, and writes go on after its end. A writer counts up in one block all the time.
 */
#include "fixture.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SIZE (UINT64_C(1) << 20)
#define BLOCK 4096u
#define HOLDS 5u

struct writer {
    pthread_t thread;
    struct image *image;
    _Atomic uint64_t acknowledged;
    _Atomic bool stop, ended;
};

static void *writer_main(void *arg)
{
    struct writer *w = arg;
    struct client client;
    uint8_t *block = aligned_alloc(BLOCK, BLOCK);
    assert_non_null(block);
    client_open(&client, w->image);
    for (uint64_t n = 1; !atomic_load(&w->stop); n++) {
        memset(block, 0, BLOCK);
        memcpy(block, &n, sizeof(n));
        if (client_op(&client, IMAGE_WRITE, 0, block, BLOCK) < 0)
            break;
        atomic_store(&w->acknowledged, n);
    }
    client_close(&client);
    free(block);
    atomic_store(&w->ended, true);
    return NULL;
}

static void wait_beyond(struct writer *w, uint64_t n)
{
    while (atomic_load(&w->acknowledged) <= n && !atomic_load(&w->ended))
        (void)nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    assert_false(atomic_load(&w->ended));
}

static void take(const struct kind *kind, struct image *image, unsigned number)
{
    struct error err = ERROR_INIT;
    layer_create(kind, number, SIZE);
    if (chain_snapshot(kind, image, number, &err) < 0)
        fail_msg("%s, layer %u: %s", kind->name, number, err.message);
}

/* Two snapshots in each hold: what layer 2 * i froze, and the chain above it, which holds the same. */
static void holds_of(const struct kind *kind)
{
    uint64_t counts[HOLDS], found;
    uint8_t *content = malloc(SIZE);
    assert_non_null(content);
    layer_create(kind, 0, SIZE);
    struct writer w = {.image = chain_open(kind, 0, false)};
    assert_int_equal(pthread_create(&w.thread, NULL, writer_main, &w), 0);
    wait_beyond(&w, 0);
    for (unsigned i = 0; i < HOLDS; i++) {
        image_drain_begin(w.image);
        counts[i] = atomic_load(&w.acknowledged);
        take(kind, w.image, 2 * i + 1);
        take(kind, w.image, 2 * i + 2);
        image_drain_end(w.image);
        wait_beyond(&w, counts[i] + 1);
    }
    atomic_store(&w.stop, true);
    assert_int_equal(pthread_join(w.thread, NULL), 0);
    assert_int_equal(image_close(w.image, NULL), 0);
    for (unsigned i = 0; i < 2 * HOLDS; i++) {
        chain_read(kind, i, content, SIZE);
        memcpy(&found, content, sizeof(found));
        /* One more may have been done without the writer's having said so yet. */
        if (found < counts[i / 2] || found > counts[i / 2] + 1)
            fail_msg("%s, layer %u: %ju, held at %ju", kind->name, i, (uintmax_t)found, (uintmax_t)counts[i / 2]);
        assert_true(layer_format(kind, i)[0] == 'r' || check_image(layer_path(i), false));
    }
    free(content);
}

static void snapshots_in_a_hold(void **state)
{
    (void)state;
    for (unsigned i = 0; i < kinds_count; i++)
        holds_of(&kinds[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(snapshots_in_a_hold)};
    return run_on_engines(tests, sizeof(tests) / sizeof(tests[0]));
}
