// SPDX-License-Identifier: Apache-2.0
/*
 * A snapshot is one moment. Several queues write numbered blocks at depth while snapshots are taken; each frozen layer must
 * hold all that had ended when its snapshot began, nothing that began after its end, and with any write that it holds also
 * every write that had ended before that one began.
 */
#include "fixture.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SIZE (UINT64_C(4) << 20)
#define BLOCK 4096u
#define BLOCKS (unsigned)(SIZE / BLOCK)
#define THREADS 3u
#define DEPTH 6u
#define WRITES 1500u
#define SNAPSHOTS 12u

struct write {
    struct image_request request; /* first */
    struct iovec iov;
    struct writer *writer;
    uint8_t *buffer;
    unsigned block;
    uint64_t started, ended; /* moments; 0 = not yet */
};

struct writer {
    pthread_t thread;
    struct load *load;
    unsigned number, seed;
    unsigned started, in_flight;
    bool busy[BLOCKS];
    struct client client;
    struct write writes[WRITES];
};

struct load {
    struct image *image;
    _Atomic uint64_t clock;
    _Atomic unsigned running;
    uint64_t begins[SNAPSHOTS], ends[SNAPSHOTS];
    unsigned snapshots;
    struct writer writers[THREADS];
};

static uint64_t now(struct load *load)
{
    return atomic_fetch_add(&load->clock, 1);
}

static uint64_t tag_of(unsigned writer, unsigned write)
{
    return (uint64_t)(writer + 1) << 32 | (write + 1);
}

/* ---- the load ---- */

static void write_done(struct image_request *request, int result)
{
    struct write *w = (struct write *)request;
    assert_int_equal(result, 0);
    w->ended = now(w->writer->load);
    w->writer->busy[w->block] = false;
    w->writer->in_flight--;
    free(w->buffer);
}

static void start_write(struct writer *writer, struct image_queue *queue)
{
    struct write *w = &writer->writes[writer->started];
    unsigned block = (unsigned)rand_r(&writer->seed) % (BLOCKS / THREADS) * THREADS + writer->number;
    if (writer->busy[block])
        return;
    uint64_t tag = tag_of(writer->number, writer->started++);
    w->writer = writer;
    w->block = block;
    w->buffer = malloc(BLOCK);
    assert_non_null(w->buffer);
    for (unsigned i = 0; i < BLOCK; i += 8)
        memcpy(w->buffer + i, &tag, 8);
    w->iov = (struct iovec){.iov_base = w->buffer, .iov_len = BLOCK};
    w->request = (struct image_request){
        .op = IMAGE_WRITE,
        .flags = rand_r(&writer->seed) % 50 ? 0 : IMAGE_FUA,
        .offset = (uint64_t)block * BLOCK,
        .length = BLOCK,
        .iov = &w->iov,
        .iovcnt = 1,
        .done = write_done,
    };
    writer->busy[block] = true;
    writer->in_flight++;
    w->started = now(writer->load);
    image_submit(queue, &w->request);
}

static void *writer_main(void *arg)
{
    struct writer *writer = arg;
    struct client *client = &writer->client;
    client_open(client, writer->load->image);
    while (writer->started < WRITES || writer->in_flight) {
        while (writer->started < WRITES && writer->in_flight < DEPTH)
            start_write(writer, client->queue);
        assert_true(io_loop_turn(client->loop, 1000) >= 0);
    }
    client_close(client);
    atomic_fetch_sub(&writer->load->running, 1);
    return NULL;
}

/* ---- the judgement ---- */

static const struct write *write_of(const struct load *load, uint64_t tag, unsigned block)
{
    unsigned writer = (unsigned)(tag >> 32) - 1, number = (unsigned)tag - 1;
    assert_true(writer < THREADS && number < WRITES);
    const struct write *w = &load->writers[writer].writes[number];
    assert_int_equal(w->block, block);
    return w;
}

static uint64_t latest_moment(const struct load *load, const uint8_t *content, unsigned snapshot)
{
    uint64_t latest = load->begins[snapshot];
    for (unsigned b = 0; b < BLOCKS; b++) {
        uint64_t tag;
        memcpy(&tag, content + (size_t)b * BLOCK, 8);
        assert_memory_equal(content + (size_t)b * BLOCK, content + (size_t)b * BLOCK + 8, BLOCK - 8);
        const struct write *w = tag ? write_of(load, tag, b) : NULL;
        assert_true(!w || w->started < load->ends[snapshot]);
        if (w && w->started > latest)
            latest = w->started;
    }
    return latest;
}

static void judge(const struct load *load, const uint8_t *content, unsigned snapshot)
{
    uint64_t moment = latest_moment(load, content, snapshot);
    for (unsigned i = 0; i < THREADS; i++) {
        for (unsigned k = 0; k < WRITES; k++) {
            const struct write *w = &load->writers[i].writes[k];
            uint64_t tag;
            memcpy(&tag, content + (size_t)w->block * BLOCK, 8);
            /* One thread writes a block, one write at a time: later ones have higher numbers. */
            if (w->ended < moment && tag < tag_of(i, k))
                fail_msg("snapshot %u: block %u has 0x%llx, not 0x%llx, which had ended", snapshot, w->block,
                         (unsigned long long)tag, (unsigned long long)tag_of(i, k));
        }
    }
}

static void moments_of(const struct kind *kind, unsigned seed)
{
    struct error err = ERROR_INIT;
    struct load *load = calloc(1, sizeof(*load));
    uint8_t *content = malloc(SIZE);
    assert_non_null(load);
    assert_non_null(content);
    layer_create(kind, 0, SIZE);
    load->image = chain_open(kind, 0, false);
    atomic_store(&load->clock, 1);
    atomic_store(&load->running, THREADS);
    for (unsigned i = 0; i < THREADS; i++) {
        struct writer *writer = &load->writers[i];
        writer->load = load;
        writer->number = i;
        writer->seed = seed + i;
        assert_int_equal(pthread_create(&writer->thread, NULL, writer_main, writer), 0);
    }
    while (load->snapshots < SNAPSHOTS && (load->snapshots < 2 || atomic_load(&load->running))) {
        unsigned i = load->snapshots++;
        layer_create(kind, i + 1, SIZE);
        load->begins[i] = now(load);
        if (chain_snapshot(kind, load->image, i + 1, &err) < 0)
            fail_msg("snapshot %u: %s", i, err.message);
        load->ends[i] = now(load);
    }
    for (unsigned i = 0; i < THREADS; i++)
        assert_int_equal(pthread_join(load->writers[i].thread, NULL), 0);
    assert_int_equal(image_close(load->image, NULL), 0);
    for (unsigned i = 0; i < load->snapshots; i++) {
        chain_read(kind, i, content, SIZE);
        judge(load, content, i);
    }
    free(content);
    free(load);
}

static void one_moment(void **state)
{
    const char *given = getenv("PLATTER_SEED");
    unsigned seed = given ? (unsigned)strtoul(given, NULL, 0) : (unsigned)getpid();
    (void)state;
    print_message("seed %u (PLATTER_SEED)\n", seed);
    for (unsigned i = 0; i < kinds_count; i++)
        moments_of(&kinds[i], seed + i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(one_moment)};
    return run_on_engines(tests, sizeof(tests) / sizeof(tests[0]));
}
