/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The record of all that changed a file, and from it the states that a power cut may leave.
 *
 * Moments are numbers of one clock that events of the file and of its users (requests) share. A change is durable at
 * moment T if it was done before a flush was issued that succeeded and was done by T. Of the changes that were issued by T
 * and are not durable, any may have reached the disk, in any order, down to single sectors. What a failed flush should
 * have covered is never durable by a later one: the kernel reports such an error once and forgets the pages.
 *
 * A sweep walks the moments of one trace upwards and makes states in a memory file, each from the durable content and
 * undone afterwards, so that a state costs what it differs.
 */
#ifndef PLATTER_TESTS_CRASH_TRACE_H
#define PLATTER_TESTS_CRASH_TRACE_H

#include <stddef.h>

#include "backends/io/seam.h"
#include "dice.h"

#define SECTOR 512u

struct trace_entry {
    enum io_seam_kind kind;
    uint64_t offset, length;
    uint8_t *data;         /* writes */
    uint64_t issued, done; /* moments; done 0 = never */
    bool failed;           /* flushes */
    bool doubtful;         /* never durable */
};

struct trace {
    uint64_t *clock; /* the next moment; may be shared with other traces */
    struct trace_entry *entries;
    size_t count, room;
    uint8_t *initial;
    uint64_t initial_length;
};

void trace_begin(struct trace *trace, uint64_t *clock, const uint8_t *content, uint64_t length);
void trace_end(struct trace *trace);
uint64_t trace_now(struct trace *trace);
/* The index of a new entry, issued now. */
size_t trace_issue(struct trace *trace, enum io_seam_kind kind, uint64_t offset, uint64_t length,
                   const struct iovec *iov, unsigned iovcnt);
void trace_done(struct trace *trace, size_t index, bool failed);
/* Of a change that is under way only the first `length` bytes will be made: it fails. */
void trace_shorten(struct trace *trace, size_t index, uint64_t length);

enum survive { SURVIVE_NONE, SURVIVE_ALL, SURVIVE_SOME, SURVIVE_TORN, SURVIVE_REORDERED, SURVIVE_KINDS };
extern const char *const survive_names[SURVIVE_KINDS];

struct memory;

struct sweep {
    const struct trace *trace;
    struct memory *file;
    uint8_t *durable;
    uint64_t durable_length, length, lowest_length; /* of the file: now, and the least since the last restore */
    size_t *pending;                                /* indexes of entries, flushes among them */
    size_t pending_count;
    uint32_t *newest; /* for each sector: the last durable change of it, as index + 1 */
    size_t next;
    uint64_t moment;
    struct {
        uint64_t offset, length;
    } * touched;
    size_t touched_count, touched_room;
};

void sweep_begin(struct sweep *sweep, const struct trace *trace, struct memory *file);
void sweep_end(struct sweep *sweep);
/* Moments only grow. The file must be as sweep_restore leaves it. */
void sweep_to(struct sweep *sweep, uint64_t moment);
/* Changes that may or may not survive now. */
size_t sweep_open(const struct sweep *sweep);
/* Make the file what a cut at this moment leaves. */
void sweep_cut(struct sweep *sweep, enum survive survive, struct dice *dice);
void sweep_restore(struct sweep *sweep);

#endif
