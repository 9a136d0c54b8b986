/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file in memory, opened by the engine like any other: a memfd, whose operations through a loop the seam does itself
 * (no kernel I/O, no file system), recorded and failed as wanted. Under a schedule each operation takes its time.
 */
#ifndef PLATTER_TESTS_CRASH_MEMORY_H
#define PLATTER_TESTS_CRASH_MEMORY_H

#include "backends/io/seam.h"
#include "dice.h"
#include "trace.h"

enum fault_kind { FAULT_EIO, FAULT_ENOSPC, FAULT_SHORT, FAULT_FLUSH, FAULT_MEMORY, FAULT_KINDS };
extern const char *const fault_names[FAULT_KINDS];

/* The `at`-th operation that can fail so (counted from 1) does, or all from there on. */
struct fault {
    enum fault_kind kind;
    uint64_t at;
    bool sticky;
    uint64_t seen;
    bool happened;
    struct dice dice; /* how much of a failing write is done nevertheless */
};

#define FAULT_OF_MEMORY (-1) /* where a seam's kind is asked for */

/* What happens to an operation of this seam kind: 0 (also for no fault), -errno, or for a short transfer the bytes that
 * pass. */
int fault_now(struct fault *fault, int kind, uint64_t length);

struct memory {
    struct io_seam seam; /* first */
    int fd;
    uint8_t *map; /* of `room` bytes; beyond the end of the file it must not be touched */
    uint64_t room;
    struct trace *trace; /* NULL: not recorded */
    struct fault *fault; /* NULL: none */
    uint64_t operations; /* of all kinds, ever */
    /* A transfer that the kernel does, cut short: */
    const struct io_op *cut; /* NULL: none */
    unsigned cut_bytes;      /* to pass first; 0: all the rest */
};

/* Empty. Ends the program where there is no memory. */
void memory_create(struct memory *memory, uint64_t room);
void memory_destroy(struct memory *memory);

/* Open for the engine, which owns the result. `room` bounds the file's growth. */
struct io_file *memory_open(struct memory *memory, bool writable);

uint64_t memory_length(const struct memory *memory);
void memory_set_length(struct memory *memory, uint64_t length);
/* Make `memory` the same as `from`. */
void memory_copy(struct memory *memory, const struct memory *from);

#endif
