// SPDX-License-Identifier: Apache-2.0
/* The threads that make and issue the model's operations. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "model_state.h"

#define HOT_BYTES 16384u /* where many small operations meet in the same blocks and clusters */
#define TRIES 16         /* to find a range that nothing in flight is in the way of */

struct model_thread {
    struct model *model;
    const struct model_target *target;
    void *context;
    void *queue;
    unsigned index;
    uint64_t random;
    unsigned in_flight;
    struct model_io *slots;
    struct model_io *free;
    pthread_t thread;
};

/* xorshift64*: small, and the same everywhere. */
static uint64_t next_random(struct model_thread *t)
{
    t->random ^= t->random >> 12;
    t->random ^= t->random << 25;
    t->random ^= t->random >> 27;
    return t->random * UINT64_C(2685821657736338717);
}

static uint64_t below(struct model_thread *t, uint64_t limit)
{
    return (next_random(t) >> 11) % limit;
}

static void fill(struct model_thread *t, uint8_t *buffer, uint64_t length)
{
    uint64_t value = 0;
    for (uint64_t i = 0; i < length; i++) {
        if (i % 8 == 0)
            value = next_random(t);
        buffer[i] = (uint8_t)(value >> (i % 8 * 8));
    }
}

/* ---- making an operation ---- */

static enum image_op choose_op(struct model_thread *t)
{
    const struct model_options *o = &t->model->options;
    uint64_t dice = below(t, 100);
    if (dice < 3)
        return IMAGE_FLUSH;
    if (dice < 12 && !o->no_discard)
        return IMAGE_DISCARD;
    if (dice < 24 && !o->no_zeroes)
        return IMAGE_WRITE_ZEROES;
    if (dice < 62 && !o->no_writes)
        return IMAGE_WRITE;
    return IMAGE_READ;
}

static void choose_range(struct model_thread *t, struct model_io *io)
{
    static const uint32_t grids[] = {1, 512, 4096, 65536};
    const struct model_options *o = &t->model->options;
    uint64_t grid = grids[below(t, ARRAY_SIZE(grids))];
    grid = MAX(grid, o->alignment);
    uint64_t longest = below(t, 4) ? MIN(o->max_length, grid == 1 ? 700 : 4 * grid) : o->max_length;
    if (grid > o->size)
        grid = o->alignment;
    longest = MAX(longest, grid);
    bool hot = grid <= 512 && o->size > HOT_BYTES && below(t, 2);
    io->offset = hot ? t->model->hot + below(t, HOT_BYTES / grid) * grid : below(t, o->size / grid) * grid;
    io->length = (1 + below(t, longest / grid)) * grid;
    io->length = MIN(MIN(io->length, o->size - io->offset), MAX(o->max_length, o->alignment));
    if (io->op == IMAGE_FLUSH)
        io->offset = io->length = 0;
}

/* The buffer, anywhere in the slot's memory, cut into a few entries. */
static void choose_memory(struct model_thread *t, struct model_io *io)
{
    uint32_t align = t->model->options.alignment;
    bool odd = align == 1 && below(t, 3) == 0;
    io->buffer = io->memory + (odd ? below(t, 4096) : 0);
    io->iovcnt = 0;
    if (io->op != IMAGE_READ && io->op != IMAGE_WRITE)
        return;
    uint64_t step = odd ? 1 : MAX(align, 512);
    uint64_t at = 0;
    while (at < io->length && io->iovcnt < MODEL_IOV_MAX) {
        uint64_t left = io->length - at;
        uint64_t part = left;
        if (io->iovcnt + 1 < MODEL_IOV_MAX && left > step && below(t, 2))
            part = (1 + below(t, left / step)) * step;
        part = MIN(part, left);
        io->iov[io->iovcnt++] = (struct iovec){io->buffer + at, part};
        at += part;
    }
    if (io->op == IMAGE_WRITE)
        fill(t, io->buffer, io->length);
    else
        memset(io->buffer, 0xa5, io->length);
}

static bool make(struct model_thread *t, struct model_io *io)
{
    io->op = choose_op(t);
    io->flags = 0;
    if (io->op == IMAGE_WRITE || io->op == IMAGE_WRITE_ZEROES)
        io->flags |= below(t, 32) == 0 ? (uint32_t)IMAGE_FUA : 0;
    if (io->op == IMAGE_WRITE_ZEROES)
        io->flags |= below(t, 2) ? (uint32_t)IMAGE_MAY_UNMAP : 0;
    for (int i = 0; i < TRIES; i++) {
        choose_range(t, io);
        if (io->op == IMAGE_FLUSH || model_reserve(t->model, io)) {
            choose_memory(t, io);
            return true;
        }
    }
    return false;
}

/* ---- running ---- */

void model_io_done(struct model_io *io, int result)
{
    struct model_thread *t = io->thread;
    model_settle(t->model, io, result);
    io->next = t->free;
    t->free = io;
    t->in_flight--;
}

static void issue(struct model_thread *t, struct model_io *io)
{
    t->in_flight++;
    t->target->submit(t->queue, io);
}

static struct model_io *take_slot(struct model_thread *t)
{
    struct model_io *io = t->free;
    t->free = io->next;
    io->next = NULL;
    return io;
}

static void wait_some(struct model_thread *t)
{
    struct model_io none = {.op = IMAGE_FLUSH};
    int r = t->target->wait(t->queue);
    if (r < 0)
        model_report(t->model, &none, "waiting failed", r);
}

static void run_mix(struct model_thread *t)
{
    for (unsigned i = 0; i < t->model->options.operations && !model_has_failed(t->model);) {
        if (!t->free) {
            wait_some(t);
            continue;
        }
        struct model_io *io = take_slot(t);
        if (make(t, io)) {
            issue(t, io);
            i++;
        } else {
            io->next = t->free;
            t->free = io;
            if (t->in_flight)
                wait_some(t);
        }
    }
}

static void run_verify(struct model_thread *t)
{
    uint64_t size = t->model->options.size;
    uint64_t step = MIN(t->model->options.max_length, size);
    for (uint64_t offset = 0; offset < size && !model_has_failed(t->model);) {
        if (!t->free) {
            wait_some(t);
            continue;
        }
        struct model_io *io = take_slot(t);
        io->op = IMAGE_READ;
        io->flags = 0;
        io->offset = offset;
        io->length = MIN(step, size - offset);
        io->buffer = io->memory;
        io->iov[0] = (struct iovec){io->buffer, io->length};
        io->iovcnt = 1;
        offset += io->length;
        if (model_reserve(t->model, io))
            issue(t, io);
    }
}

static void run_thread(struct model_thread *t, void (*body)(struct model_thread *t))
{
    struct model_io none = {.op = IMAGE_FLUSH};
    const struct model_options *o = &t->model->options;
    size_t bytes = align_up(o->max_length, 4096) + MAX(o->alignment, 4096);
    t->slots = calloc(o->depth, sizeof(*t->slots));
    for (unsigned i = 0; i < o->depth; i++) {
        struct model_io *io = &t->slots[i];
        void *memory = NULL;
        if (posix_memalign(&memory, 4096, bytes) != 0)
            abort();
        io->memory = memory;
        io->thread = t;
        io->next = t->free;
        t->free = io;
    }
    int r = t->target->begin(t->context, t->index, &t->queue);
    if (r < 0) {
        model_report(t->model, &none, "no queue", r);
    } else {
        body(t);
        while (t->in_flight)
            wait_some(t);
        t->target->end(t->queue);
    }
    for (unsigned i = 0; i < o->depth; i++)
        free(t->slots[i].memory);
    free(t->slots);
}

static void *mix_main(void *arg)
{
    run_thread(arg, run_mix);
    return NULL;
}

static void *verify_main(void *arg)
{
    run_thread(arg, run_verify);
    return NULL;
}

static int run(struct model *model, const struct model_target *target, void *context, unsigned count,
               void *(*body)(void *))
{
    struct model_thread *threads = calloc(count, sizeof(*threads));
    uint64_t hot_places = model->options.size / HOT_BYTES;
    model->runs++;
    model->hot = hot_places ? (model->seed / 7 + model->runs) % hot_places * HOT_BYTES : 0;
    for (unsigned i = 0; i < count; i++) {
        struct model_thread *t = &threads[i];
        t->model = model;
        t->target = target;
        t->context = context;
        t->index = i;
        t->random = (model->seed + model->runs * 1000003) * UINT64_C(0x9e3779b97f4a7c15) + i + 1;
        if (pthread_create(&t->thread, NULL, body, t) != 0)
            abort();
    }
    for (unsigned i = 0; i < count; i++)
        (void)pthread_join(threads[i].thread, NULL);
    free(threads);
    return model_has_failed(model) ? -1 : 0;
}

int model_run(struct model *model, const struct model_target *target, void *context)
{
    return run(model, target, context, model->options.threads, mix_main);
}

int model_verify(struct model *model, const struct model_target *target, void *context)
{
    return run(model, target, context, 1, verify_main);
}
