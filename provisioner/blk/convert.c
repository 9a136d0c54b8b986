// SPDX-License-Identifier: Apache-2.0
/*
 * A ring of slots, each with a buffer, goes round: take the next piece of data of the source, read it, write those
 * parts of it that are not zero, take the next. Reads, writes and the source's map (IMAGE_STATUS) are all in flight
 * on the one loop at once.
 *
 * Completions may come from within image_submit, so they only put their slot on the list of those that are ready; the
 * turns of the copy take it from there, and nothing recurses.
 *
 * A piece begins and ends at the target's clusters and does not reach over a multiple of the slot's size, so two slots
 * never meet in one cluster of the target. The map is read in windows of many extents, one ahead of need at most.
 */
#include "provisioner/blk/convert.h"

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
    ZERO_GRANULE = 4096,
    PROGRESS_NS = 200 * 1000 * 1000,
};

#define SLOT_BYTES MIB
#define WINDOW_BYTES (UINT64_C(64) * GIB) /* of the map, asked for at once */

struct convert;

struct slot {
    struct convert *convert;
    struct image_request request; /* the read, then the writes */
    struct iovec iov;
    uint8_t *buffer;
    uint64_t offset; /* of the piece */
    uint64_t length;
    uint64_t position; /* in the piece: looked through and written up to here */
    struct slot *next; /* in `idle` or `ready` */
};

struct convert {
    struct io_loop *loop;
    struct image_queue *from, *to;
    uint64_t size;    /* bytes to copy */
    uint64_t granule; /* zeros are skipped in multiples of this */
    uint64_t slot_bytes;
    uint64_t cursor;  /* everything before it was handed to a slot or skipped */
    uint64_t written; /* bytes of data */
    int result;       /* the first error */
    unsigned busy;    /* slots and status requests in flight */
    struct slot slots[SLOTS];
    struct slot *idle;
    struct slot *ready; /* a read or write of theirs has completed */

    struct image_request status_request;
    struct image_status status;
    struct image_extent *extents;
    unsigned extent;     /* the one at which the map is being read */
    uint64_t extent_end; /* where in the image it ends */
    uint64_t map_end;    /* where the last one ends */
    bool map_pending;    /* the next window is being asked for */
    uint64_t last_report_ns;
    uint64_t last_reported;
};

static void fail(struct convert *c, int result)
{
    if (result < 0 && c->result == 0)
        c->result = result;
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

static void transfer_done(struct image_request *request, int result)
{
    struct slot *slot = (struct slot *)((char *)request - offsetof(struct slot, request));
    fail(slot->convert, result);
    push(&slot->convert->ready, slot);
}

/* Start the read or write of `length` bytes at `start` within the slot's piece. */
static void transfer(struct slot *slot, enum image_op op, uint64_t start, uint64_t length)
{
    struct convert *c = slot->convert;
    slot->iov = (struct iovec){.iov_base = slot->buffer + start, .iov_len = length};
    slot->request = (struct image_request){
        .op = op,
        .offset = slot->offset + start,
        .length = length,
        .iov = &slot->iov,
        .iovcnt = 1,
        .done = transfer_done,
    };
    image_submit(op == IMAGE_READ ? c->from : c->to, &slot->request);
}

/* ---- writing what is not zero -------------------------------------------------------------------------------- */

static bool all_zero(const uint8_t *bytes, uint64_t length)
{
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0;
}

/* From `position` on, the next run of granules with data: its start and length; false when there is none. */
static bool next_run(const struct slot *slot, uint64_t *ret_start, uint64_t *ret_length)
{
    uint64_t granule = slot->convert->granule;
    uint64_t start = slot->position;
    while (start < slot->length && all_zero(slot->buffer + start, MIN(granule, slot->length - start)))
        start += granule;
    if (start >= slot->length)
        return false;
    uint64_t end = start + granule;
    while (end < slot->length && !all_zero(slot->buffer + end, MIN(granule, slot->length - end)))
        end += granule;
    *ret_start = start;
    *ret_length = MIN(end, slot->length) - start;
    return true;
}

/* The read or a write of the slot has completed: write the next run, or give the slot back. */
static void advance(struct slot *slot)
{
    struct convert *c = slot->convert;
    uint64_t start, length;
    if (c->result < 0 || !next_run(slot, &start, &length)) {
        push(&c->idle, slot);
        c->busy--;
        return;
    }
    slot->position = start + length;
    c->written += length;
    transfer(slot, IMAGE_WRITE, start, length);
}

static void read_piece(struct slot *slot, uint64_t offset, uint64_t length)
{
    slot->offset = offset;
    slot->length = length;
    slot->position = 0;
    transfer(slot, IMAGE_READ, 0, length);
}

/* ---- the source's map ----------------------------------------------------------------------------------------- */

static bool extent_has_data(const struct image_extent *extent)
{
    return (extent->state & IMAGE_EXTENT_ALLOCATED) && !(extent->state & IMAGE_EXTENT_ZERO);
}

static void map_done(struct image_request *request, int result)
{
    struct convert *c = (struct convert *)((char *)request - offsetof(struct convert, status_request));
    c->map_pending = false;
    c->busy--;
    c->extent = 0;
    uint64_t covered = 0;
    for (unsigned i = 0; result == 0 && i < c->status.count; i++)
        covered += c->extents[i].length;
    if (result == 0 && covered == 0)
        result = -EIO; /* the engine promises at least one extent */
    fail(c, result);
    c->extent_end = c->map_end + (covered ? c->extents[0].length : 0);
    c->map_end += covered;
}

static void ask_for_map(struct convert *c)
{
    c->map_pending = true;
    c->busy++;
    c->status = (struct image_status){.extents = c->extents, .max = EXTENTS};
    c->status_request = (struct image_request){
        .op = IMAGE_STATUS,
        .offset = c->map_end,
        .length = MIN(c->size - c->map_end, WINDOW_BYTES),
        .status = &c->status,
        .done = map_done,
    };
    image_submit(c->from, &c->status_request);
}

/* The next piece with data, as far as the map goes; false when the map is used up. */
static bool next_piece(struct convert *c, uint64_t *ret_offset, uint64_t *ret_length)
{
    while (c->cursor < c->map_end) {
        if (c->extent_end > c->cursor && extent_has_data(&c->extents[c->extent])) {
            uint64_t limit = MIN(align_down(c->cursor, c->slot_bytes) + c->slot_bytes, c->size);
            uint64_t end = MIN(align_up(c->extent_end, c->granule), limit);
            *ret_offset = c->cursor;
            *ret_length = end - c->cursor;
            c->cursor = end;
            return true;
        }
        if (c->extent_end == c->map_end) { /* the last one: skip to its end */
            c->cursor = MAX(c->cursor, c->map_end == c->size ? c->size : align_down(c->map_end, c->granule));
            return false;
        }
        c->extent++;
        c->cursor = MAX(c->cursor, align_down(c->extent_end, c->granule));
        c->extent_end += c->extents[c->extent].length;
    }
    return false;
}

/* Hand out work until there is no idle slot or nothing left. */
static void fill_slots(struct convert *c)
{
    uint64_t offset, length;
    while (c->idle && c->result == 0 && !c->map_pending) {
        if (next_piece(c, &offset, &length)) {
            c->busy++;
            read_piece(pop(&c->idle), offset, length);
        } else if (c->map_end < c->size) {
            ask_for_map(c);
        } else {
            return;
        }
    }
}

/* ---- the whole ------------------------------------------------------------------------------------------------ */

static uint64_t now_ns(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void report(struct convert *c, struct convert_progress *progress, bool last)
{
    if (!progress || !progress->report)
        return;
    uint64_t now = now_ns();
    if (!last && (c->cursor == c->last_reported || now - c->last_report_ns < PROGRESS_NS))
        return;
    c->last_report_ns = now;
    c->last_reported = c->cursor;
    fail(c, progress->report(progress, c->cursor, c->size));
}

static void flush_done(struct image_request *request, int result)
{
    struct convert *c = (struct convert *)((char *)request - offsetof(struct convert, status_request));
    fail(c, result);
    c->busy--;
}

static int turn_until_idle(struct convert *c, struct convert_progress *progress)
{
    for (;;) {
        while (c->ready)
            advance(pop(&c->ready));
        fill_slots(c); /* also when nothing is in flight: an answer about the map may just have brought more to do */
        if (c->ready)
            continue;
        if (!c->busy)
            return 0;
        int r = io_loop_turn(c->loop, -1);
        if (r < 0 && r != -EINTR)
            return r;
        report(c, progress, false);
    }
}

static int run(struct convert *c, struct convert_progress *progress, struct error *err)
{
    int r = turn_until_idle(c, progress);
    if (r < 0)
        return error_sys(err, r, "copy the image");
    if (c->result == 0) {
        c->busy++;
        c->status_request = (struct image_request){.op = IMAGE_FLUSH, .done = flush_done};
        image_submit(c->to, &c->status_request);
        r = turn_until_idle(c, progress);
        fail(c, r);
    }
    if (c->result == 0)
        report(c, progress, true);
    return c->result < 0 ? error_sys(err, c->result, "copy the image") : 0;
}

static void convert_destroy(struct convert **cp)
{
    struct convert *c = *cp;
    if (!c)
        return;
    if (c->from)
        c->from = image_queue_destroy(c->from);
    if (c->to)
        c->to = image_queue_destroy(c->to);
    c->loop = io_loop_destroy(c->loop);
    for (unsigned i = 0; i < SLOTS; i++)
        free(c->slots[i].buffer);
    free(c->extents);
    free(c);
}

static int set_up(struct convert *c, struct image *source, struct image *target, struct error *err)
{
    struct image_geometry from, to;
    image_geometry(source, &from);
    image_geometry(target, &to);
    if (to.size < from.size)
        return error_set(err, EINVAL, "the target is smaller than the source");
    c->size = from.size;
    c->granule = MAX(to.preferred, ZERO_GRANULE);
    c->slot_bytes = MAX(SLOT_BYTES, c->granule);
    c->extents = calloc(EXTENTS, sizeof(*c->extents));
    if (!c->extents)
        return error_sys(err, ENOMEM, "copy the image");
    for (unsigned i = 0; i < SLOTS; i++) {
        struct slot *slot = &c->slots[i];
        slot->convert = c;
        slot->buffer = aligned_alloc(4096, c->slot_bytes);
        if (!slot->buffer)
            return error_sys(err, ENOMEM, "copy the image");
        push(&c->idle, slot);
    }
    struct io_loop_options options = {.depth = 4 * SLOTS};
    int r = io_loop_create(&options, &c->loop, err);
    if (r == 0)
        r = image_queue_create(source, c->loop, &c->from, err);
    if (r == 0)
        r = image_queue_create(target, c->loop, &c->to, err);
    return r;
}

int convert_copy(struct image *source, struct image *target, struct convert_progress *progress, uint64_t *ret_bytes,
                 struct error *err)
{
    CLEANUP(convert_destroy) struct convert *c = calloc(1, sizeof(*c));
    if (!c)
        return error_sys(err, ENOMEM, "copy the image");
    int r = set_up(c, source, target, err);
    if (r == 0)
        r = run(c, progress, err);
    if (r < 0)
        return r;
    if (ret_bytes)
        *ret_bytes = c->written;
    return 0;
}
