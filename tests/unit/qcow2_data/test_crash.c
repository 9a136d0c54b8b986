// SPDX-License-Identifier: Apache-2.0
/*
 * Power cuts: a random load at depth is recorded below the engine; then, for a cut at every flush and at random moments
 * between, images are made of what is durable and any part of what is not. Each must be an image with leaks at most, and
 * each block must hold what its last flush promised or something written later: never anything foreign.
 */
#include "fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "record.h"

#define BLOCK 4096u
#define SECTOR 512u
#define DEPTH 6u
#define OPERATIONS 220u
#define CUTS 12u /* at random moments */

/* One request of the load, kept for the judgement. */
struct step {
    struct image_request request; /* first */
    struct iovec iov;
    struct load *load;
    uint64_t started, ended; /* moments; ended 0 = not yet */
    unsigned first, count;   /* blocks */
    uint64_t tag;            /* every 8 bytes; 0 for zeroes and discards */
};

struct load {
    const struct kind *kind;
    struct recorder recorder;
    struct io_loop *loop;
    struct image_queue *queue;
    struct step steps[OPERATIONS];
    unsigned started, in_flight;
    bool *busy;
    unsigned blocks, seed;
    uint8_t *buffers;
};

static void step_done(struct image_request *request, int result)
{
    struct step *step = (struct step *)request;
    assert_int_equal(result, 0);
    step->ended = recorder_now(&step->load->recorder);
    step->load->in_flight--;
    for (unsigned i = 0; i < step->count; i++)
        step->load->busy[step->first + i] = false;
}

static unsigned roll(struct load *load, unsigned below)
{
    return (unsigned)rand_r(&load->seed) % below;
}

/* Blocks that no request in flight touches; false when the dice did not find any. */
static bool choose_blocks(struct load *load, struct step *step)
{
    step->first = roll(load, load->blocks);
    step->count = 1 + roll(load, roll(load, 4) ? 4 : 40);
    if (step->first + step->count > load->blocks)
        step->count = load->blocks - step->first;
    for (unsigned i = 0; i < step->count; i++)
        if (load->busy[step->first + i])
            return false;
    return true;
}

static void step_start(struct load *load)
{
    struct step *step = &load->steps[load->started];
    unsigned dice = roll(load, 100);
    enum image_op op = dice < 7    ? IMAGE_FLUSH
                       : dice < 17 ? IMAGE_DISCARD
                       : dice < 30 ? IMAGE_WRITE_ZEROES
                                   : IMAGE_WRITE;
    if (op != IMAGE_FLUSH && !choose_blocks(load, step))
        return;
    if (op == IMAGE_FLUSH)
        step->count = 0;
    uint8_t *buffer = load->buffers + (size_t)load->started * 40 * BLOCK;
    step->load = load;
    step->tag = op == IMAGE_WRITE ? (uint64_t)(load->started + 1) << 32 | 0x5a5a : 0;
    for (size_t i = 0; i < (size_t)step->count * BLOCK / 8; i++)
        memcpy(buffer + 8 * i, &step->tag, 8);
    step->iov = (struct iovec){.iov_base = buffer, .iov_len = (size_t)step->count * BLOCK};
    step->request = (struct image_request){
        .op = op,
        .flags = op == IMAGE_WRITE_ZEROES && roll(load, 2) ? IMAGE_MAY_UNMAP : 0,
        .offset = (uint64_t)step->first * BLOCK,
        .length = step->iov.iov_len,
        .iov = &step->iov,
        .iovcnt = 1,
        .done = step_done,
    };
    for (unsigned i = 0; i < step->count; i++)
        load->busy[step->first + i] = true;
    step->started = recorder_now(&load->recorder);
    load->started++;
    load->in_flight++;
    image_submit(load->queue, &step->request);
}

static void load_run(struct load *load, const char *path)
{
    kind_create(load->kind, path);
    recorder_init(&load->recorder, path);
    struct image *image = kind_open(load->kind, path, false, &load->recorder.seam);
    assert_non_null(image);
    assert_int_equal(io_loop_create(&(struct io_loop_options){0}, &load->loop, NULL), 0);
    assert_int_equal(image_queue_create(image, load->loop, &load->queue, NULL), 0);
    while (load->started < OPERATIONS || load->in_flight) {
        for (unsigned i = 0; i < 4 && load->started < OPERATIONS && load->in_flight < DEPTH; i++)
            step_start(load);
        assert_true(io_loop_turn(load->loop, load->in_flight ? 1000 : 0) >= 0);
    }
    load->queue = image_queue_destroy(load->queue);
    load->loop = io_loop_destroy(load->loop);
    assert_int_equal(image_close(image, NULL), 0);
    assert_true(check_image(path, false));
}

/* ---- the judgement ---- */

/* What a completed flush covers at `moment`: requests that ended before this. */
static uint64_t promised_before(const struct load *load, uint64_t moment)
{
    uint64_t promised = 0;
    for (unsigned i = 0; i < OPERATIONS; i++) {
        const struct step *s = &load->steps[i];
        if (s->request.op == IMAGE_FLUSH && s->ended && s->ended <= moment && s->started > promised)
            promised = s->started;
    }
    return promised;
}

/* May a sector of `block` hold `tag` after a cut at `moment`? Requests on one block never overlap in time. */
static bool allowed(const struct load *load, unsigned block, uint64_t tag, uint64_t moment, uint64_t promised)
{
    bool ok = tag == (load->kind->overlay ? UINT64_C(0xbbbbbbbbbbbbbbbb) : 0);
    for (unsigned i = 0; i < OPERATIONS; i++) {
        const struct step *s = &load->steps[i];
        if (s->request.op == IMAGE_FLUSH || block < s->first || block >= s->first + s->count || s->started > moment)
            continue;
        bool floor = s->ended && s->ended < promised && s->request.op != IMAGE_DISCARD;
        ok = s->tag == tag || (ok && !floor);
    }
    return ok;
}

static bool sector_uniform(const uint8_t *sector)
{
    return memcmp(sector, sector + 8, SECTOR - 8) == 0;
}

static bool content_allowed(const struct load *load, const uint8_t *content, uint64_t moment)
{
    uint64_t promised = promised_before(load, moment);
    for (uint64_t at = 0; at < load->kind->size; at += SECTOR) {
        uint64_t tag;
        memcpy(&tag, content + at, 8);
        if (sector_uniform(content + at) && allowed(load, (unsigned)(at / BLOCK), tag, moment, promised))
            continue;
        (void)fprintf(stderr, "at %llu: 0x%llx after a cut at %llu (promised before %llu)\n", (unsigned long long)at,
                      (unsigned long long)tag, (unsigned long long)moment, (unsigned long long)promised);
        return false;
    }
    return true;
}

static void read_done(struct image_request *request, int result)
{
    request->length = 0;
    request->offset = (uint64_t)(int64_t)result;
}

static bool read_all(const struct kind *kind, const char *path, uint8_t *content)
{
    struct image *image = kind_open(kind, path, true, NULL);
    struct io_loop *loop = NULL;
    struct image_queue *queue = NULL;
    if (!image)
        return false;
    assert_int_equal(io_loop_create(&(struct io_loop_options){0}, &loop, NULL), 0);
    assert_int_equal(image_queue_create(image, loop, &queue, NULL), 0);
    struct iovec iov = {.iov_base = content, .iov_len = kind->size};
    struct image_request request = {
        .op = IMAGE_READ, .length = kind->size, .iov = &iov, .iovcnt = 1, .done = read_done};
    image_submit(queue, &request);
    while (request.length)
        assert_true(io_loop_turn(loop, 1000) >= 0);
    (void)image_queue_destroy(queue);
    (void)io_loop_destroy(loop);
    (void)image_close(image, NULL);
    return request.offset == 0;
}

static void judge(struct load *load, uint64_t moment, enum survive survive)
{
    const char *path = scratch("cut.qcow2");
    uint8_t *content = malloc(load->kind->size);
    unsigned seed = load->seed;
    assert_non_null(content);
    recorder_cut(&load->recorder, moment, survive, &load->seed, path);
    bool good =
        check_image(path, true) && read_all(load->kind, path, content) && content_allowed(load, content, moment);
    free(content);
    if (!good)
        fail_msg("%s: cut at %llu, survive %d, cut seed %u", load->kind->name, (unsigned long long)moment, survive,
                 seed);
}

static void cuts_of(const struct kind *kind, unsigned seed)
{
    struct load *load = calloc(1, sizeof(*load));
    assert_non_null(load);
    load->kind = kind;
    load->seed = seed;
    load->blocks = (unsigned)(kind->size / BLOCK);
    load->busy = calloc(load->blocks, sizeof(bool));
    load->buffers = malloc((size_t)OPERATIONS * 40 * BLOCK);
    load_run(load, scratch("crash.qcow2"));
    for (unsigned i = 0; i < OPERATIONS; i++) {
        const struct step *s = &load->steps[i];
        if (s->request.op == IMAGE_FLUSH)
            judge(load, s->ended, i % 2 ? SURVIVE_NONE : SURVIVE_TORN);
    }
    uint64_t end = recorder_now(&load->recorder);
    for (unsigned i = 0; i < CUTS; i++)
        judge(load, (uint64_t)rand_r(&load->seed) % end, (enum survive)(i % 4));
    recorder_done(&load->recorder);
    free(load->busy);
    free(load->buffers);
    free(load);
}

static void any_cut_leaves_an_image(void **state)
{
    const char *given = getenv("PLATTER_SEED");
    unsigned seed = given ? (unsigned)strtoul(given, NULL, 0) : (unsigned)getpid();
    (void)state;
    print_message("seed %u (PLATTER_SEED)\n", seed);
    for (unsigned i = 0; i < kinds_count; i++)
        cuts_of(&kinds[i], seed + i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(any_cut_leaves_an_image)};
    return cmocka_run_group_tests(tests, scratch_begin, scratch_end);
}
