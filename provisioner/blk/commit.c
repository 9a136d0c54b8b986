// SPDX-License-Identifier: Apache-2.0
/*
 * A ring of slots goes round, as in convert.c: take the next run that the upper layers hold, read it, write it, take the
 * next. Pieces end where the map says, to the subcluster: what the upper layers do not hold must not be touched below.
 * Completions may come from within image_submit, so they only put their slot on the list of those that are ready.
 */
#include "provisioner/blk/commit.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/checked.h"
#include "common/cleanup.h"

enum {
    SLOTS = 16,
    EXTENTS = 4096,
    REPORT_MS = 50,
};

#define SLOT_BYTES MIB
#define SLOT_BYTES_MIN (64 * KIB)         /* when there is a bound on the speed */
#define ZERO_BYTES (256 * MIB)            /* zeroed by one request */
#define WINDOW_BYTES (UINT64_C(64) * GIB) /* of the map, asked for at once */
#define NS_PER_SECOND UINT64_C(1000000000)

struct commit;

struct slot {
    struct commit *commit;
    struct image_request request; /* the read, then the write */
    struct iovec iov;
    uint8_t *buffer;
    struct slot *next; /* in `idle` or `ready` */
};

struct commit {
    struct io_loop *loop;
    struct image_queue *upper, *lower;
    uint32_t layers;
    uint64_t size;
    uint64_t bytes_per_second;
    uint64_t slot_bytes;
    uint64_t cursor;  /* everything before it was handed to a slot or skipped */
    uint64_t written; /* bytes of data */
    uint64_t next_ns; /* not before this moment may the next data be read */
    int result;       /* the first error */
    unsigned busy;    /* slots and other requests in flight */
    struct slot slots[SLOTS];
    struct slot *idle;
    struct slot *ready; /* a request of theirs has completed */

    struct image_request request; /* of the map; the flush */
    struct image_status status;
    struct image_extent extents[EXTENTS];
    unsigned extent;     /* the one that `cursor` is in */
    uint64_t extent_end; /* where in the image it ends */
    bool map_pending;
    uint64_t reported_ns;
};

static void fail(struct commit *c, int result)
{
    if (result < 0 && c->result == 0)
        c->result = result;
}

static uint64_t now_ns(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_SECOND + (uint64_t)ts.tv_nsec;
}

static void push(struct slot **list, struct slot *slot)
{
    slot->next = *list;
    *list = slot;
}

static struct slot *pop(struct slot **list)
{
    struct slot *slot = *list;
    *list = slot->next;
    return slot;
}

/* ---- slots ----------------------------------------------------------------------------------------------------- */

static void slot_done(struct image_request *request, int result)
{
    struct slot *slot = (struct slot *)((char *)request - offsetof(struct slot, request));
    fail(slot->commit, result);
    push(&slot->commit->ready, slot);
}

static void submit(struct slot *slot, enum image_op op, uint64_t offset, uint64_t length)
{
    struct commit *c = slot->commit;
    slot->iov = (struct iovec){.iov_base = slot->buffer, .iov_len = length};
    slot->request = (struct image_request){
        .op = op,
        .flags = op == IMAGE_WRITE_ZEROES ? IMAGE_MAY_UNMAP : 0,
        .offset = offset,
        .length = length,
        .iov = &slot->iov,
        .iovcnt = 1,
        .done = slot_done,
    };
    image_submit(op == IMAGE_READ ? c->upper : c->lower, &slot->request);
}

static bool all_zero(const uint8_t *bytes, uint64_t length)
{
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0;
}

/* What was read is written; what was written frees the slot. */
static void advance(struct slot *slot)
{
    struct commit *c = slot->commit;
    uint64_t length = slot->request.length;
    if (c->result < 0 || slot->request.op != IMAGE_READ) {
        push(&c->idle, slot);
        c->busy--;
        return;
    }
    bool zero = all_zero(slot->buffer, length);
    c->written += zero ? 0 : length;
    submit(slot, zero ? IMAGE_WRITE_ZEROES : IMAGE_WRITE, slot->request.offset, length);
}

/* ---- the upper layers' map --------------------------------------------------------------------------------------- */

static void map_done(struct image_request *request, int result)
{
    struct commit *c = (struct commit *)((char *)request - offsetof(struct commit, request));
    c->map_pending = false;
    c->busy--;
    c->extent = 0;
    if (result == 0 && c->status.count == 0)
        result = -EIO; /* the engine promises at least one extent */
    fail(c, result);
    if (result == 0)
        c->extent_end = c->cursor + c->extents[0].length;
}

static void ask_for_map(struct commit *c)
{
    c->map_pending = true;
    c->busy++;
    c->status = (struct image_status){.extents = c->extents, .max = EXTENTS};
    c->request = (struct image_request){
        .op = IMAGE_STATUS,
        .offset = c->cursor,
        .length = MIN(c->size - c->cursor, WINDOW_BYTES),
        .status = &c->status,
        .layers = c->layers,
        .done = map_done,
    };
    image_submit(c->upper, &c->request);
}

/* Move on to an extent that the layers hold; false when the map is used up. */
static bool find_extent(struct commit *c)
{
    while (c->extent < c->status.count) {
        bool absent = c->extents[c->extent].state & IMAGE_EXTENT_ABSENT;
        if (c->cursor < c->extent_end && !absent)
            return true;
        c->cursor = c->extent_end;
        if (++c->extent < c->status.count)
            c->extent_end += c->extents[c->extent].length;
    }
    return false;
}

/* The cursor is in an extent to be copied, and there is an idle slot. */
static void start_piece(struct commit *c)
{
    bool zero = c->extents[c->extent].state & IMAGE_EXTENT_ZERO;
    uint64_t bytes = zero ? ZERO_BYTES : c->slot_bytes;
    uint64_t offset = c->cursor;
    uint64_t end = MIN(align_down(offset, bytes) + bytes, c->extent_end);
    c->busy++;
    c->cursor = end;
    if (!zero && c->bytes_per_second)
        c->next_ns = MAX(c->next_ns, now_ns()) + (end - offset) * NS_PER_SECOND / c->bytes_per_second;
    submit(pop(&c->idle), zero ? IMAGE_WRITE_ZEROES : IMAGE_READ, offset, end - offset);
}

/* Hand out work. Returns for how many milliseconds none may be handed out, -1 = until something completes. */
static int fill_slots(struct commit *c)
{
    while (c->idle && c->result == 0 && !c->map_pending) {
        uint64_t now = c->bytes_per_second ? now_ns() : 0;
        if (now < c->next_ns)
            return (int)MIN((c->next_ns - now) / 1000000 + 1, (uint64_t)REPORT_MS);
        if (find_extent(c))
            start_piece(c);
        else if (c->cursor < c->size)
            ask_for_map(c);
        else
            break;
    }
    return -1;
}

/* ---- the whole ------------------------------------------------------------------------------------------------- */

/* Also where nothing moved: a slow copy is no dead one. */
static void report(struct commit *c, struct convert_progress *progress, bool last)
{
    uint64_t now = now_ns();
    if (!progress || !progress->report || (!last && now - c->reported_ns < REPORT_MS * UINT64_C(1000000)))
        return;
    c->reported_ns = now;
    fail(c, progress->report(progress, c->cursor, c->size));
}

static void flush_done(struct image_request *request, int result)
{
    struct commit *c = (struct commit *)((char *)request - offsetof(struct commit, request));
    fail(c, result);
    c->busy--;
}

static int turn_until_done(struct commit *c, struct convert_progress *progress)
{
    for (;;) {
        int wait_ms = fill_slots(c);
        if (!c->busy && wait_ms < 0)
            return 0;
        if (!c->ready) {
            int r = io_loop_turn(c->loop, wait_ms);
            if (r < 0 && r != -EINTR)
                return r;
        }
        while (c->ready)
            advance(pop(&c->ready));
        report(c, progress, false);
    }
}

static int run(struct commit *c, struct convert_progress *progress, struct error *err)
{
    int r = turn_until_done(c, progress);
    if (r == 0 && c->result == 0) {
        c->busy++;
        c->request = (struct image_request){.op = IMAGE_FLUSH, .done = flush_done};
        image_submit(c->lower, &c->request);
        r = turn_until_done(c, progress);
    }
    if (r < 0)
        return error_sys(err, r, "commit the layer");
    if (c->result == 0)
        report(c, progress, true);
    return c->result < 0 ? error_sys(err, c->result, "commit the layer") : 0;
}

static void commit_destroy(struct commit **cp)
{
    struct commit *c = *cp;
    if (!c)
        return;
    c->upper = image_queue_destroy(c->upper);
    c->lower = image_queue_destroy(c->lower);
    c->loop = io_loop_destroy(c->loop);
    for (unsigned i = 0; i < SLOTS; i++)
        free(c->slots[i].buffer);
    free(c);
}

static int set_up(struct commit *c, struct image *upper, struct image *lower, struct error *err)
{
    if (c->bytes_per_second)
        c->slot_bytes = MAX(MIN(align_down(c->bytes_per_second / 8, SLOT_BYTES_MIN), SLOT_BYTES), SLOT_BYTES_MIN);
    for (unsigned i = 0; i < SLOTS; i++) {
        struct slot *slot = &c->slots[i];
        slot->commit = c;
        slot->buffer = aligned_alloc(4096, SLOT_BYTES);
        if (!slot->buffer)
            return error_sys(err, ENOMEM, "commit the layer");
        push(&c->idle, slot);
    }
    struct io_loop_options options = {.depth = 4 * SLOTS};
    int r = io_loop_create(&options, &c->loop, err);
    if (r == 0)
        r = image_queue_create(upper, c->loop, &c->upper, err);
    return r < 0 ? r : image_queue_create(lower, c->loop, &c->lower, err);
}

/* The lower layer becomes as large as the upper one. */
static int grow(struct image *lower, uint64_t size, struct error *err)
{
    struct image_geometry geometry;
    image_geometry(lower, &geometry);
    if (geometry.size > size)
        return error_set(err, EINVAL, "the lower layer has %ju bytes, more than the upper one with %ju",
                         (uintmax_t)geometry.size, (uintmax_t)size);
    return geometry.size < size ? image_resize(lower, size, err) : 0;
}

int commit_layers(struct image *upper, uint32_t layers, struct image *lower, uint64_t bytes_per_second,
                  struct convert_progress *progress, uint64_t *ret_bytes, struct error *err)
{
    struct image_geometry geometry;
    CLEANUP(commit_destroy) struct commit *c = calloc(1, sizeof(*c));
    if (!c)
        return error_sys(err, ENOMEM, "commit the layer");
    image_geometry(upper, &geometry);
    c->layers = layers;
    c->size = geometry.size;
    c->bytes_per_second = bytes_per_second;
    c->slot_bytes = SLOT_BYTES;
    int r = grow(lower, c->size, err);
    if (r == 0)
        r = set_up(c, upper, lower, err);
    if (r == 0)
        r = run(c, progress, err);
    if (r == 0)
        *ret_bytes = c->written;
    return r;
}
