// SPDX-License-Identifier: Apache-2.0
#include "load.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "alloc.h"
#include "fatal.h"
#include "oracle.h"
#include "schedule.h"
#include "workers.h"

#define DEPTH 8u
#define KIB UINT64_C(1024)
#define RESIZE_STEP (64 * KIB)

const struct variant variants[] = {
    {.name = "raw", .format = "raw", .size = 256 * KIB},
    {.name = "v3", .format = "qcow2", .size = 512 * KIB, .cluster_size = 4096, .version = 3},
    {.name = "v2", .format = "qcow2", .size = 192 * KIB, .cluster_size = 512, .version = 2},
    {.name = "v3-extended",
     .format = "qcow2",
     .size = 512 * KIB,
     .cluster_size = 16384,
     .version = 3,
     .extended_l2 = true},
    {.name = "overlay",
     .format = "qcow2",
     .size = 448 * KIB,
     .cluster_size = 4096,
     .version = 3,
     .below = 384 * KIB,
     .refcount_bits = 1},
    {.name = "overlay-v2",
     .format = "qcow2",
     .size = 192 * KIB,
     .cluster_size = 1024,
     .version = 2,
     .below = 160 * KIB},
    {.name = "overlay-extended",
     .format = "qcow2",
     .size = 512 * KIB,
     .cluster_size = 16384,
     .version = 3,
     .extended_l2 = true,
     .below = 384 * KIB},
};
const unsigned variants_count = sizeof(variants) / sizeof(variants[0]);

/* ---- steps ---- */

static void step_done(struct image_request *request, int result)
{
    struct step *step = (struct step *)request;
    struct load *load = step->load;
    step->result = result;
    step->ended = trace_now(&load->trace);
    load->in_flight--;
    for (uint32_t i = step->first; step->op != IMAGE_READ && i < step->first + step->count; i++)
        load->busy[i] = false;
    schedule_note((uint64_t)(step - load->steps) << 16 ^ (uint64_t)(int64_t)result);
    if (result != 0 && !load->options.tolerate && !load->wrong) {
        load->wrong = true;
        finding("step %ld (op %d, %u granules at %u): %s\n", (long)(step - load->steps), step->op, step->count,
                step->first, strerror(-result));
    }
    oracle_succeeded(load->oracle, step);
    if (step->op != IMAGE_READ || result != 0)
        return;
    if (oracle_judge(load->oracle, step->buffer, step->first, step->count, step->ended, step->floors) < 0 &&
        !load->wrong) {
        load->wrong = true;
        finding("step %ld read: %s\n", (long)(step - load->steps), load->oracle->message);
    }
}

/* Granules that no step in flight changes; false when the dice did not find any. Mostly in a few hot places, so that
 * clusters are written, freed and used again. */
static bool choose_granules(struct load *load, struct step *step)
{
    struct dice *dice = &load->dice;
    uint32_t granules = (uint32_t)(load->size / GRANULE), cluster = load->variant->cluster_size / GRANULE;
    uint32_t units[] = {1, 8, 64, cluster ? cluster : 64, cluster ? cluster : 64};
    uint32_t unit = units[dice_roll(dice, 5)];
    uint32_t most = dice_roll(dice, 8) ? 4 : 24;
    uint32_t reach = dice_roll(dice, 3) ? granules / 4 : granules;
    step->first = dice_roll(dice, reach) / unit * unit;
    step->count = (1 + dice_roll(dice, most)) * unit;
    if (step->count > granules / 3)
        step->count = granules / 3;
    if (step->first + step->count > granules)
        step->count = granules - step->first;
    for (uint32_t i = step->first; step->op != IMAGE_READ && i < step->first + step->count; i++)
        if (load->busy[i])
            return false;
    return step->count > 0;
}

static void cut_buffer(struct load *load, struct step *step)
{
    size_t left = (size_t)step->count * GRANULE, at = 0;
    unsigned n = 0;
    while (left) {
        size_t part =
            n < 2 && dice_roll(&load->dice, 3) == 0 ? (1 + dice_roll(&load->dice, step->count)) * GRANULE : left;
        part = part < left ? part : left;
        step->iov[n++] = (struct iovec){step->buffer + at, part};
        at += part;
        left -= part;
    }
    step->request.iov = step->iov;
    step->request.iovcnt = n;
}

static enum image_op choose_op(struct dice *dice)
{
    uint32_t roll = dice_roll(dice, 100);
    return roll < 8    ? IMAGE_FLUSH
           : roll < 18 ? IMAGE_DISCARD
           : roll < 30 ? IMAGE_WRITE_ZEROES
           : roll < 38 ? IMAGE_READ
                       : IMAGE_WRITE;
}

static void step_start(struct load *load)
{
    struct step *step = &load->steps[load->started];
    struct dice *dice = &load->dice;
    *step = (struct step){.load = load, .op = choose_op(dice)};
    if (step->op != IMAGE_FLUSH && !choose_granules(load, step)) {
        step->count = 0;
        return;
    }
    bool changes = step->op == IMAGE_WRITE || step->op == IMAGE_WRITE_ZEROES;
    step->fua = changes && dice_roll(dice, 12) == 0;
    step->request = (struct image_request){.op = step->op,
                                           .offset = (uint64_t)step->first * GRANULE,
                                           .length = (uint64_t)step->count * GRANULE,
                                           .done = step_done};
    step->request.flags = step->fua ? IMAGE_FUA : 0;
    if (step->op == IMAGE_WRITE_ZEROES && dice_roll(dice, 2))
        step->request.flags |= IMAGE_MAY_UNMAP;
    if (step->op == IMAGE_WRITE || step->op == IMAGE_READ) {
        step->buffer = own_alloc(NULL, (size_t)step->count * GRANULE);
        cut_buffer(load, step);
    }
    if (step->op == IMAGE_READ) {
        step->floors = own_alloc(NULL, step->count * sizeof(*step->floors));
        memcpy(step->floors, load->oracle->floor + step->first, step->count * sizeof(*step->floors));
    }
    for (uint32_t i = 0; step->op == IMAGE_WRITE && i < step->count; i++)
        stamp_fill(step->buffer + (size_t)i * GRANULE, load->stamp, step->first + i, load->started + 1);
    for (uint32_t i = step->first; step->op != IMAGE_READ && i < step->first + step->count; i++)
        load->busy[i] = true;
    step->started = trace_now(&load->trace);
    oracle_started(load->oracle, step);
    load->started++;
    load->in_flight++;
    image_submit(load->queues[dice_roll(dice, LOAD_QUEUES)], &step->request);
}

/* ---- growing, on a control thread ---- */

static void *resize_main(void *argument)
{
    struct load *load = argument;
    struct resize *resize = &load->resizes[load->resize_count - 1];
    resize->result = image_resize(load->image, resize->size, NULL);
    resize->ended = trace_now(&load->trace);
    load->controlling = false;
    return NULL;
}

/* Run `main` beside requests. */
static void control(struct load *load, void *(*main)(void *))
{
    pthread_t thread;
    load->controlling = true;
    MUST(pthread_create(&thread, NULL, main, load) == 0);
    while (load->controlling) {
        if (load->started < load->options.steps && load->in_flight < DEPTH)
            step_start(load);
        schedule_turn(load->loops, LOAD_QUEUES);
    }
    MUST(pthread_join(thread, NULL) == 0);
}

static void grow(struct load *load)
{
    struct resize *resize = &load->resizes[load->resize_count++];
    *resize = (struct resize){.size = load->size + (1 + dice_roll(&load->dice, 2)) * RESIZE_STEP};
    resize->started = trace_now(&load->trace);
    control(load, resize_main);
    if (resize->result == 0)
        load->size = resize->size;
    if (resize->result == 0 || load->options.tolerate || load->wrong)
        return;
    load->wrong = true;
    finding("growing to %llu: %s\n", (unsigned long long)resize->size, strerror(-resize->result));
}

/* ---- a snapshot, on a control thread ---- */

static void make_layer(struct memory *file, const char *format, const struct image_create_options *options)
{
    struct fault *fault = memory_fault(NULL);
    struct error err = ERROR_INIT;
    struct io_file *opened = memory_open(file, true);
    if (image_create(opened, format, options, &err) < 0)
        FATAL("create %s: %s", format, err.message);
    (void)io_file_close(opened);
    (void)memory_fault(fault);
}

static void *snapshot_main(void *argument)
{
    struct load *load = argument;
    const struct variant *v = load->variant;
    struct image_create_options options = {
        .size = load->size,
        .cluster_size = v->cluster_size ? v->cluster_size : 4096,
        .version = v->version,
        .extended_l2 = v->extended_l2,
        .backing = "lower",
        .backing_format = v->format,
    };
    struct fault *fault = load->file.fault;
    load->upper.fault = NULL;
    make_layer(&load->upper, "qcow2", &options);
    load->upper.fault = fault;
    trace_begin(&load->upper_trace, &load->clock, load->upper.map, memory_length(&load->upper));
    load->upper.trace = &load->upper_trace;
    load->snapshot.started = trace_now(&load->trace);
    struct image_layer layer = {"qcow2", memory_open(&load->upper, true)};
    load->snapshot.result = image_snapshot(load->image, &layer, NULL);
    if (load->snapshot.result < 0)
        (void)io_file_close(layer.file);
    load->snapshot.ended = trace_now(&load->trace);
    load->controlling = false;
    return NULL;
}

static void take_snapshot(struct load *load)
{
    control(load, snapshot_main);
    if (load->snapshot.result == 0 || load->options.tolerate || load->wrong)
        return;
    load->wrong = true;
    finding("snapshot: %s\n", strerror(-load->snapshot.result));
}

bool load_has_upper(const struct load *load, uint64_t moment)
{
    const struct snapshot *s = &load->snapshot;
    return s->started && s->started <= moment && !(s->ended <= moment && s->result < 0);
}

/* ---- the run ---- */

static void make_below(struct load *load)
{
    uint64_t size = load->variant->below;
    memory_create(&load->below, size ? size : 4096);
    memory_set_length(&load->below, size);
    for (uint64_t i = 0; i < size / GRANULE; i++)
        stamp_fill(load->below.map + i * GRANULE, load->stamp, i, 0);
}

static void make_image(struct load *load)
{
    const struct variant *v = load->variant;
    struct image_create_options options = {
        .size = v->size,
        .cluster_size = v->cluster_size,
        .version = v->version,
        .extended_l2 = v->extended_l2,
        .refcount_bits = v->refcount_bits,
        .backing = v->below ? "below.raw" : NULL,
        .backing_format = v->below ? "raw" : NULL,
    };
    make_layer(&load->file, v->format, &options);
}

struct image *load_open(struct load *load, struct memory *file, struct memory *upper, bool read_only, struct error *err)
{
    struct image_layer layers[3];
    unsigned count = 0;
    if (upper)
        layers[count++] = (struct image_layer){"qcow2", memory_open(upper, !read_only)};
    layers[count++] = (struct image_layer){load->variant->format, memory_open(file, !read_only && !upper)};
    if (load->variant->below)
        layers[count++] = (struct image_layer){"raw", memory_open(&load->below, false)};
    /* A small cache: tables are evicted and loaded again. */
    struct image_options options = {.read_only = read_only, .cache_bytes = 16384};
    struct image *image = NULL;
    if (image_open(layers, count, &options, &image, err) == 0)
        return image;
    for (unsigned i = 0; i < count; i++)
        (void)io_file_close(layers[i].file);
    return NULL;
}

void load_create(struct load *load, const struct variant *variant, const struct load_options *options)
{
    *load = (struct load){.variant = variant, .options = *options, .size = variant->size};
    load->dice.state = dice_mix(options->seed + 1);
    load->stamp = dice_mix(options->seed) | 1;
    load->steps = need(calloc(options->steps + 1, sizeof(*load->steps)));
    load->busy = need(calloc(SIZE_MOST / GRANULE, sizeof(bool)));
    load->clock = 1;
    memory_create(&load->file, FILE_ROOM);
    memory_create(&load->upper, FILE_ROOM);
    make_below(load);
    make_image(load);
    trace_begin(&load->trace, &load->clock, load->file.map, memory_length(&load->file));
    load->file.trace = &load->trace;
    load->oracle = need(malloc(sizeof(*load->oracle)));
    oracle_create(load->oracle, load);
}

void load_destroy(struct load *load)
{
    for (unsigned i = 0; i < load->started; i++) {
        free(load->steps[i].buffer);
        free(load->steps[i].floors);
    }
    free(load->steps);
    free(load->busy);
    oracle_destroy(load->oracle);
    free(load->oracle);
    trace_end(&load->trace);
    trace_end(&load->upper_trace);
    memory_destroy(&load->file);
    memory_destroy(&load->upper);
    memory_destroy(&load->below);
}

static int open_queues(struct load *load)
{
    struct error err = ERROR_INIT;
    load->image = load_open(load, &load->file, NULL, false, &err);
    if (!load->image) {
        if (!load->options.tolerate)
            FATAL("open %s: %s", load->variant->name, err.message);
        return err.errnum ? -err.errnum : -EIO;
    }
    for (unsigned i = 0; i < LOAD_QUEUES; i++) {
        int r = image_queue_create(load->image, load->loops[i], &load->queues[i], NULL);
        if (r < 0) {
            MUST(load->options.tolerate);
            return r;
        }
    }
    return 0;
}

static void run_steps(struct load *load)
{
    while (load->started < load->options.steps || load->in_flight) {
        for (unsigned i = dice_roll(&load->dice, 4); i > 0; i--)
            if (load->started < load->options.steps && load->in_flight < DEPTH)
                step_start(load);
        if (load->options.resize_odds && load->resize_count < LOAD_RESIZES &&
            dice_roll(&load->dice, load->options.resize_odds) == 0 && load->size + 2 * RESIZE_STEP <= SIZE_MOST)
            grow(load);
        if (load->options.snapshot_odds && !load->snapshot.started &&
            dice_roll(&load->dice, load->options.snapshot_odds) == 0)
            take_snapshot(load);
        schedule_turn(load->loops, LOAD_QUEUES);
    }
}

int load_run(struct load *load, struct fault *fault)
{
    int r = 0;
    for (unsigned i = 0; i < LOAD_QUEUES; i++)
        MUST(io_loop_create(&(struct io_loop_options){.depth = 32}, &load->loops[i], NULL) == 0);
    schedule_begin(load->options.seed);
    load->file.fault = load->below.fault = fault;
    (void)memory_fault(fault);
    r = open_queues(load);
    if (r == 0)
        run_steps(load);
    for (unsigned i = 0; i < LOAD_QUEUES; i++)
        load->queues[i] = image_queue_destroy(load->queues[i]);
    load->closed = load->image ? image_close(load->image, NULL) : 0;
    load->file.fault = load->upper.fault = load->below.fault = NULL;
    (void)memory_fault(NULL);
    load->hash = schedule_hash();
    schedule_end();
    for (unsigned i = 0; i < LOAD_QUEUES; i++)
        load->loops[i] = io_loop_destroy(load->loops[i]);
    return r;
}

/* ---- reading ---- */

struct reading {
    struct image_request request; /* first */
    bool ended;
    int result;
};

static void reading_done(struct image_request *request, int result)
{
    struct reading *reading = (struct reading *)request;
    reading->result = result;
    reading->ended = true;
}

int load_read(struct image *image, struct io_loop *loop, uint8_t *content, uint64_t size)
{
    struct image_queue *queue = NULL;
    int r = image_queue_create(image, loop, &queue, NULL);
    if (r < 0)
        return r;
    struct iovec iov = {content, size};
    struct reading reading = {
        .request = {.op = IMAGE_READ, .length = size, .iov = &iov, .iovcnt = 1, .done = reading_done}};
    image_submit(queue, &reading.request);
    while (!reading.ended)
        (void)io_loop_turn(loop, 1000);
    (void)image_queue_destroy(queue);
    return reading.result;
}

/* ---- telling ---- */

static void tell_entry(const char *file, const struct trace_entry *e)
{
    static const char *const kinds[] = {"read", "write", "flush", "discard", "zero", "allocate", "truncate"};
    (void)fprintf(stderr, "%6llu %6llu   %s %s 0x%llx + 0x%llx%s%s\n", (unsigned long long)e->issued,
                  (unsigned long long)e->done, file, kinds[e->kind], (unsigned long long)e->offset,
                  (unsigned long long)e->length, e->failed ? " FAILED" : "", e->doubtful ? " in doubt" : "");
}

static void tell_step(const struct load *load, const struct step *s)
{
    static const char *const ops[] = {"read", "write", "write zeroes", "discard", "flush"};
    (void)fprintf(stderr, "%6llu %6llu step %ld %s%s 0x%llx + 0x%llx: %d\n", (unsigned long long)s->started,
                  (unsigned long long)s->ended, (long)(s - load->steps), ops[s->op], s->fua ? " FUA" : "",
                  (unsigned long long)s->first * GRANULE, (unsigned long long)s->count * GRANULE, s->result);
}

void load_tell(const struct load *load)
{
    size_t entry = 0, upper = 0;
    unsigned step = 0;
    if (!getenv("PLATTER_CRASH_VERBOSE"))
        return;
    while (entry < load->trace.count || step < load->started) {
        if (step == load->started ||
            (entry < load->trace.count && load->trace.entries[entry].issued < load->steps[step].started))
            tell_entry("file", &load->trace.entries[entry++]);
        else
            tell_step(load, &load->steps[step++]);
    }
    for (; upper < load->upper_trace.count; upper++)
        tell_entry("upper", &load->upper_trace.entries[upper]);
    if (load->snapshot.started)
        (void)fprintf(stderr, "%6llu %6llu snapshot: %d\n", (unsigned long long)load->snapshot.started,
                      (unsigned long long)load->snapshot.ended, load->snapshot.result);
    for (unsigned i = 0; i < load->resize_count; i++)
        (void)fprintf(stderr, "%6llu %6llu growing to 0x%llx: %d\n", (unsigned long long)load->resizes[i].started,
                      (unsigned long long)load->resizes[i].ended, (unsigned long long)load->resizes[i].size,
                      load->resizes[i].result);
}
