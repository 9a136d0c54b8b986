// SPDX-License-Identifier: Apache-2.0
#include "trace.h"

#include <stdlib.h>
#include <string.h>

#include "alloc.h"
#include "fatal.h"
#include "memory.h"

const char *const survive_names[SURVIVE_KINDS] = {"none", "all", "some", "torn", "reordered"};

/* ---- recording ---- */

void trace_begin(struct trace *trace, uint64_t *clock, const uint8_t *content, uint64_t length)
{
    *trace = (struct trace){.clock = clock, .initial_length = length};
    trace->initial = own_alloc(NULL, length);
    memcpy(trace->initial, content, length);
}

void trace_end(struct trace *trace)
{
    for (size_t i = 0; i < trace->count; i++)
        free(trace->entries[i].data);
    free(trace->entries);
    free(trace->initial);
    *trace = (struct trace){0};
}

uint64_t trace_now(struct trace *trace)
{
    return (*trace->clock)++;
}

size_t trace_issue(struct trace *trace, enum io_seam_kind kind, uint64_t offset, uint64_t length,
                   const struct iovec *iov, unsigned iovcnt)
{
    if (trace->count == trace->room) {
        trace->room = trace->room ? 2 * trace->room : 1024;
        trace->entries = own_alloc(trace->entries, trace->room * sizeof(*trace->entries));
    }
    struct trace_entry *entry = &trace->entries[trace->count];
    *entry = (struct trace_entry){.kind = kind, .offset = offset, .length = length, .issued = trace_now(trace)};
    if (kind == SEAM_WRITE) {
        uint8_t *to = entry->data = own_alloc(NULL, length);
        uint64_t left = length;
        for (unsigned i = 0; i < iovcnt && left; i++) {
            size_t part = iov[i].iov_len < left ? iov[i].iov_len : left;
            memcpy(to, iov[i].iov_base, part);
            to += part;
            left -= part;
        }
    }
    return trace->count++;
}

void trace_done(struct trace *trace, size_t index, bool failed)
{
    struct trace_entry *flush = &trace->entries[index];
    flush->done = trace_now(trace);
    flush->failed = failed;
    if (!failed || flush->kind != SEAM_FLUSH)
        return;
    for (size_t i = 0; i < trace->count; i++) {
        struct trace_entry *entry = &trace->entries[i];
        bool durable = false;
        for (size_t f = 0; f < trace->count && !durable; f++) {
            const struct trace_entry *other = &trace->entries[f];
            durable = other->kind == SEAM_FLUSH && other->done && !other->failed && entry->done &&
                      entry->done < other->issued;
        }
        if (!durable && entry->done)
            entry->doubtful = true;
    }
}

void trace_shorten(struct trace *trace, size_t index, uint64_t length)
{
    struct trace_entry *entry = &trace->entries[index];
    entry->length = length < entry->length ? length : entry->length;
    if (!entry->length && entry->kind != SEAM_FLUSH)
        entry->kind = SEAM_WRITE; /* of nothing, also where it was to change the length */
}

/* ---- the file of a sweep ---- */

static void set_length(struct sweep *sweep, uint64_t length)
{
    if (length == sweep->length)
        return;
    memory_set_length(sweep->file, length);
    sweep->length = length;
    if (length < sweep->lowest_length)
        sweep->lowest_length = length;
}

static void touch(struct sweep *sweep, uint64_t offset, uint64_t length)
{
    if (sweep->touched_count == sweep->touched_room) {
        sweep->touched_room = sweep->touched_room ? 2 * sweep->touched_room : 256;
        sweep->touched = need(realloc(sweep->touched, sweep->touched_room * sizeof(*sweep->touched)));
    }
    sweep->touched[sweep->touched_count].offset = offset;
    sweep->touched[sweep->touched_count++].length = length;
}

/* [from, to) of the entry's own bytes. */
static void apply_bytes(struct sweep *sweep, const struct trace_entry *entry, uint64_t from, uint64_t to)
{
    if (entry->data) {
        if (entry->offset + to > sweep->length)
            set_length(sweep, entry->offset + to);
        memcpy(sweep->file->map + entry->offset + from, entry->data + from, to - from);
    } else {
        /* Zeroing does not move the end. */
        if (entry->offset + from >= sweep->length)
            return;
        if (entry->offset + to > sweep->length)
            to = sweep->length - entry->offset;
        memset(sweep->file->map + entry->offset + from, 0, to - from);
    }
    touch(sweep, entry->offset + from, to - from);
}

/* The same, but for sectors that something later has changed durably: what a failed flush left in doubt is over there. */
static void apply_part(struct sweep *sweep, const struct trace_entry *entry, uint64_t from, uint64_t to)
{
    if (!entry->doubtful) {
        apply_bytes(sweep, entry, from, to);
        return;
    }
    size_t index = (size_t)(entry - sweep->trace->entries);
    for (uint64_t next; from < to; from = next) {
        uint64_t sector = (entry->offset + from) / SECTOR;
        next = (sector + 1) * SECTOR - entry->offset;
        next = next < to ? next : to;
        if (sweep->newest[sector] <= index)
            apply_bytes(sweep, entry, from, next);
    }
}

static void apply(struct sweep *sweep, const struct trace_entry *entry)
{
    switch (entry->kind) {
    case SEAM_TRUNCATE:
        set_length(sweep, entry->offset);
        break;
    case SEAM_ALLOCATE:
        if (entry->offset + entry->length > sweep->length)
            set_length(sweep, entry->offset + entry->length);
        break;
    case SEAM_WRITE:
    case SEAM_DISCARD:
    case SEAM_ZERO:
        apply_part(sweep, entry, 0, entry->length);
        break;
    default:
        break;
    }
}

/* Any of its sectors: of the file, not of the operation. */
static void apply_torn(struct sweep *sweep, const struct trace_entry *entry, struct dice *dice)
{
    if (entry->kind != SEAM_WRITE && entry->kind != SEAM_DISCARD && entry->kind != SEAM_ZERO) {
        apply(sweep, entry);
        return;
    }
    for (uint64_t from = 0, to; from < entry->length; from = to) {
        to = (entry->offset + from) / SECTOR * SECTOR + SECTOR - entry->offset;
        to = to < entry->length ? to : entry->length;
        if (dice_roll(dice, 2))
            apply_part(sweep, entry, from, to);
    }
}

void sweep_restore(struct sweep *sweep)
{
    uint64_t end = sweep->durable_length;
    set_length(sweep, end);
    for (size_t i = 0; i < sweep->touched_count; i++) {
        uint64_t offset = sweep->touched[i].offset, length = sweep->touched[i].length;
        if (offset >= end)
            continue;
        memcpy(sweep->file->map + offset, sweep->durable + offset, length < end - offset ? length : end - offset);
    }
    if (sweep->lowest_length < end)
        memcpy(sweep->file->map + sweep->lowest_length, sweep->durable + sweep->lowest_length,
               end - sweep->lowest_length);
    sweep->touched_count = 0;
    sweep->lowest_length = end;
}

/* The file becomes the durable content. */
static void keep(struct sweep *sweep)
{
    uint64_t old = sweep->durable_length;
    if (sweep->lowest_length < old)
        memset(sweep->durable + sweep->lowest_length, 0, old - sweep->lowest_length);
    for (size_t i = 0; i < sweep->touched_count; i++) {
        uint64_t offset = sweep->touched[i].offset, length = sweep->touched[i].length;
        if (offset < sweep->length)
            memcpy(sweep->durable + offset, sweep->file->map + offset,
                   length < sweep->length - offset ? length : sweep->length - offset);
    }
    sweep->touched_count = 0;
    sweep->durable_length = sweep->lowest_length = sweep->length;
}

/* ---- the sweep ---- */

void sweep_begin(struct sweep *sweep, const struct trace *trace, struct memory *file)
{
    *sweep = (struct sweep){.trace = trace, .file = file};
    sweep->durable = need(calloc(1, file->room));
    sweep->pending = need(calloc(trace->count + 1, sizeof(*sweep->pending)));
    sweep->newest = need(calloc(file->room / SECTOR + 1, sizeof(*sweep->newest)));
    memcpy(sweep->durable, trace->initial, trace->initial_length);
    memory_set_length(file, 0);
    memory_set_length(file, trace->initial_length);
    memcpy(file->map, trace->initial, trace->initial_length);
    sweep->durable_length = sweep->length = sweep->lowest_length = trace->initial_length;
}

void sweep_end(struct sweep *sweep)
{
    free(sweep->durable);
    free(sweep->pending);
    free(sweep->newest);
    free(sweep->touched);
    *sweep = (struct sweep){0};
}

static void remember(struct sweep *sweep, const struct trace_entry *entry)
{
    if (entry->kind == SEAM_FLUSH || entry->kind == SEAM_TRUNCATE || entry->kind == SEAM_ALLOCATE || !entry->length)
        return;
    for (uint64_t s = entry->offset / SECTOR; s <= (entry->offset + entry->length - 1) / SECTOR; s++)
        sweep->newest[s] = (uint32_t)(entry - sweep->trace->entries) + 1;
}

void sweep_to(struct sweep *sweep, uint64_t moment)
{
    const struct trace *trace = sweep->trace;
    uint64_t covered = 0;
    sweep->moment = moment;
    while (sweep->next < trace->count && trace->entries[sweep->next].issued <= moment)
        sweep->pending[sweep->pending_count++] = sweep->next++;
    for (size_t i = 0; i < sweep->pending_count; i++) {
        const struct trace_entry *entry = &trace->entries[sweep->pending[i]];
        if (entry->kind == SEAM_FLUSH && entry->done && entry->done <= moment && !entry->failed &&
            entry->issued > covered)
            covered = entry->issued;
    }
    if (!covered)
        return;
    size_t left = 0;
    for (size_t i = 0; i < sweep->pending_count; i++) {
        const struct trace_entry *entry = &trace->entries[sweep->pending[i]];
        bool durable = entry->kind != SEAM_FLUSH && entry->done && entry->done < covered && !entry->doubtful;
        bool over = entry->kind == SEAM_FLUSH && entry->done && entry->done <= moment;
        if (durable) {
            apply(sweep, entry);
            remember(sweep, entry);
        } else if (!over)
            sweep->pending[left++] = sweep->pending[i];
    }
    sweep->pending_count = left;
    keep(sweep);
}

size_t sweep_open(const struct sweep *sweep)
{
    size_t count = 0;
    for (size_t i = 0; i < sweep->pending_count; i++)
        count += sweep->trace->entries[sweep->pending[i]].kind != SEAM_FLUSH;
    return count;
}

/* Lengths change in the order of the operations (file systems journal them so); bytes in any. */
static void cut_reordered(struct sweep *sweep, struct dice *dice)
{
    size_t order[256], count = 0;
    for (size_t i = 0; i < sweep->pending_count; i++) {
        const struct trace_entry *entry = &sweep->trace->entries[sweep->pending[i]];
        bool bytes = entry->kind == SEAM_WRITE || entry->kind == SEAM_DISCARD || entry->kind == SEAM_ZERO;
        if (!bytes || count == sizeof(order) / sizeof(order[0]))
            apply(sweep, entry);
        else
            order[count++] = sweep->pending[i];
    }
    for (size_t i = count; i > 0; i--) {
        size_t at = dice_roll(dice, (uint32_t)i);
        if (dice_roll(dice, 4))
            apply(sweep, &sweep->trace->entries[order[at]]);
        order[at] = order[i - 1];
    }
}

void sweep_cut(struct sweep *sweep, enum survive survive, struct dice *dice)
{
    if (survive == SURVIVE_REORDERED) {
        cut_reordered(sweep, dice);
        return;
    }
    uint32_t chance = 1 + dice_roll(dice, 7); /* of eight: few survive, or most */
    for (size_t i = 0; i < sweep->pending_count && survive != SURVIVE_NONE; i++) {
        const struct trace_entry *entry = &sweep->trace->entries[sweep->pending[i]];
        if (survive == SURVIVE_ALL)
            apply(sweep, entry);
        else if (dice_roll(dice, 8) >= chance)
            continue;
        else if (survive == SURVIVE_TORN)
            apply_torn(sweep, entry, dice);
        else
            apply(sweep, entry);
    }
}
