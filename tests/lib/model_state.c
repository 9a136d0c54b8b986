// SPDX-License-Identifier: Apache-2.0
#include "model_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/checked.h"
#include "common/cleanup.h"

static void defaults(struct model_options *o)
{
    o->threads = o->threads ? o->threads : 1;
    o->depth = o->depth ? o->depth : 8;
    o->operations = o->operations ? o->operations : 1000;
    o->alignment = o->alignment ? o->alignment : 1;
    o->max_length = o->max_length ? o->max_length : 256 << 10;
}

static uint64_t choose_seed(uint64_t wanted)
{
    const char *forced = getenv("MODEL_SEED");
    struct timespec ts;
    if (forced)
        return strtoull(forced, NULL, 0);
    if (wanted)
        return wanted;
    (void)clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

struct model *model_create(const struct model_options *options)
{
    struct model *model = calloc(1, sizeof(*model));
    if (!model)
        abort();
    model->options = *options;
    defaults(&model->options);
    model->seed = choose_seed(options->seed);
    (void)pthread_mutex_init(&model->lock, NULL);
    model->value = calloc(1, options->size);
    model->other = calloc(1, options->size);
    model->flags = calloc(1, options->size);
    if (!model->value || !model->other || !model->flags)
        abort();
    return model;
}

struct model *model_destroy(struct model *model)
{
    if (!model)
        return NULL;
    (void)pthread_mutex_destroy(&model->lock);
    free(model->value);
    free(model->other);
    free(model->flags);
    free(model);
    return NULL;
}

uint64_t model_seed(const struct model *model)
{
    return model->seed;
}

void model_set_options(struct model *model, const struct model_options *options)
{
    uint64_t size = model->options.size;
    model->options = *options;
    model->options.size = size;
    defaults(&model->options);
}

static uint8_t *grown(uint8_t *bytes, uint64_t from, uint64_t to)
{
    uint8_t *p = realloc(bytes, to);
    if (!p)
        abort();
    memset(p + from, 0, to - from);
    return p;
}

void model_grow(struct model *model, uint64_t size)
{
    uint64_t from = model->options.size;
    model->value = grown(model->value, from, size);
    model->other = grown(model->other, from, size);
    model->flags = grown(model->flags, from, size);
    model->options.size = size;
}

void model_set(struct model *model, uint64_t offset, const void *data, uint64_t length)
{
    LOCK_SCOPE(&model->lock);
    memcpy(model->value + offset, data, length);
    memset(model->flags + offset, 0, length);
}

/* ---- ranges in flight ---- */

bool model_reserve(struct model *model, struct model_io *io)
{
    LOCK_SCOPE(&model->lock);
    for (const struct model_io *other = model->in_flight; other; other = other->next) {
        if (ranges_overlap(io->offset, io->length, other->offset, other->length) &&
            (io->op != IMAGE_READ || other->op != IMAGE_READ))
            return false;
    }
    io->next = model->in_flight;
    model->in_flight = io;
    io->reserved = true;
    return true;
}

static void unreserve(struct model *model, struct model_io *io)
{
    struct model_io **at = &model->in_flight;
    if (!io->reserved)
        return;
    while (*at != io)
        at = &(*at)->next;
    *at = io->next;
    io->reserved = false;
}

/* ---- what an operation teaches ---- */

static void learn_write(struct model *model, const struct model_io *io, bool failed)
{
    for (uint64_t i = 0; i < io->length; i++) {
        uint64_t at = io->offset + i;
        uint8_t byte = io->op == IMAGE_WRITE ? io->buffer[i] : 0;
        if (!failed) {
            model->value[at] = byte;
            model->flags[at] = 0;
        } else if (model->flags[at]) {
            model->flags[at] |= MODEL_ANY;
        } else if (byte != model->value[at]) {
            model->other[at] = byte;
            model->flags[at] |= MODEL_OTHER;
        }
    }
}

static bool byte_right(const struct model *model, uint64_t at, uint8_t byte)
{
    uint8_t flags = model->flags[at];
    return byte == model->value[at] || (flags & MODEL_ANY) || ((flags & MODEL_OTHER) && byte == model->other[at]) ||
           ((flags & MODEL_MAYBE_ZERO) && byte == 0);
}

/* Under lock: the first wrong byte, or UINT64_MAX. */
static uint64_t first_wrong(const struct model *model, uint64_t offset, const uint8_t *data, uint64_t length)
{
    if (memcmp(model->value + offset, data, length) == 0)
        return UINT64_MAX;
    for (uint64_t i = 0; i < length; i++) {
        if (!byte_right(model, offset + i, data[i]))
            return offset + i;
    }
    return UINT64_MAX;
}

static bool tolerated(const struct model *model, int result)
{
    for (const int *t = model->options.tolerate; t && *t; t++) {
        if (*t == result)
            return true;
    }
    return false;
}

/* ---- reports ---- */

static const char *op_name(enum image_op op)
{
    static const char *const names[] = {"read", "write", "write-zeroes", "discard", "flush", "status"};
    return names[op];
}

void model_report(struct model *model, const struct model_io *io, const char *what, int result)
{
    LOCK_SCOPE(&model->lock);
    model->failed = true;
    (void)fprintf(stderr, "model: seed %llu: %s of %llu at %llu: %s (%d)\n", (unsigned long long)model->seed,
                  op_name(io->op), (unsigned long long)io->length, (unsigned long long)io->offset, what, result);
}

static void report_wrong(struct model *model, uint64_t offset, uint64_t length, uint64_t wrong, const uint8_t *data)
{
    model->failed = true;
    (void)fprintf(stderr, "model: seed %llu: read of %llu at %llu: byte %llu is %02x, not %02x (flags %x)\n",
                  (unsigned long long)model->seed, (unsigned long long)length, (unsigned long long)offset,
                  (unsigned long long)wrong, data[wrong - offset], model->value[wrong], model->flags[wrong]);
}

bool model_has_failed(struct model *model)
{
    LOCK_SCOPE(&model->lock);
    return model->failed;
}

int model_compare(struct model *model, uint64_t offset, const void *data, uint64_t length)
{
    LOCK_SCOPE(&model->lock);
    uint64_t wrong = first_wrong(model, offset, data, length);
    if (wrong != UINT64_MAX)
        report_wrong(model, offset, length, wrong, data);
    return model->failed ? -1 : 0;
}

void model_settle(struct model *model, struct model_io *io, int result)
{
    if (result != 0 && !tolerated(model, result))
        model_report(model, io, "failed", result);
    LOCK_SCOPE(&model->lock);
    switch (io->op) {
    case IMAGE_READ:
        if (result == 0) {
            uint64_t wrong = first_wrong(model, io->offset, io->buffer, io->length);
            if (wrong != UINT64_MAX)
                report_wrong(model, io->offset, io->length, wrong, io->buffer);
        }
        break;
    case IMAGE_WRITE:
    case IMAGE_WRITE_ZEROES:
        learn_write(model, io, result != 0);
        break;
    case IMAGE_DISCARD:
        for (uint64_t i = 0; i < io->length; i++)
            model->flags[io->offset + i] |= MODEL_MAYBE_ZERO;
        break;
    default:
        break;
    }
    unreserve(model, io);
}
