/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A seeded load on an image in a memory file, under a schedule: writes of all alignments, zeroings, discards, reads,
 * flushes, writes with FUA and growth, at depth, on two queues, ended by closing the image. Every step and the moments of
 * its start and end stay for the judgement (oracle.h).
 *
 * Offsets and lengths are multiples of a granule; each written granule carries a stamp: which load, which granule, which
 * step. Steps that change one granule never overlap in time, so their order is known; reads overlap with anything.
 */
#ifndef PLATTER_TESTS_CRASH_LOAD_H
#define PLATTER_TESTS_CRASH_LOAD_H

#include "backends/format/image.h"
#include "memory.h"

#define GRANULE 64u
#define LOAD_QUEUES 2u
#define LOAD_RESIZES 3u
#define FILE_ROOM (UINT64_C(8) << 20)
#define SIZE_MOST (UINT64_C(1) << 20) /* of an image, grown */

struct variant {
    const char *name, *format;
    uint64_t size;
    uint32_t cluster_size, version, refcount_bits;
    bool extended_l2;
    uint64_t below; /* bytes of the raw parent; 0 = none */
};
extern const struct variant variants[];
extern const unsigned variants_count;

struct load;

/* `generation` in the stamps is the step's index + 1; 0 is what the parent holds. */
struct step {
    struct image_request request; /* first */
    struct load *load;
    struct iovec iov[3];
    uint8_t *buffer;
    uint64_t started, ended; /* moments; ended 0 = not */
    uint32_t first, count;   /* granules */
    enum image_op op;        /* the engine may change the request's for a while */
    bool fua;
    int result;
    int32_t *floors; /* reads: the granules' floors at the start */
};

struct resize {
    uint64_t size, started, ended;
    int result;
};

/* One for each load: `upper` is put on top. Those who open the image may take it along from `started` on. */
struct snapshot {
    uint64_t started, ended; /* 0 = not */
    int result;
};

struct load_options {
    uint64_t seed;
    unsigned steps;
    bool tolerate;          /* requests may fail (faults are at work) */
    unsigned resize_odds;   /* one turn in so many begins to grow the image; 0 = none does */
    unsigned snapshot_odds; /* the same for the snapshot */
};

struct load {
    const struct variant *variant;
    struct load_options options;
    uint64_t clock;
    /* The image; after a snapshot it is frozen and `upper` stands above it. The parent, where the variant has one. */
    struct memory file, upper, below;
    struct trace trace, upper_trace;
    uint64_t stamp; /* the load's mark */

    struct step *steps;
    unsigned started, in_flight;
    struct resize resizes[LOAD_RESIZES];
    unsigned resize_count;
    struct snapshot snapshot;
    uint64_t size; /* as all requests so far know it */
    int closed;    /* result of image_close */
    uint64_t hash; /* of the schedule */

    struct oracle *oracle; /* what reads may answer while the load runs */
    bool wrong;            /* a read did not, or a request failed that must not; was printed */

    struct dice dice; /* its own from here */
    struct image *image;
    struct io_loop *loops[LOAD_QUEUES];
    struct image_queue *queues[LOAD_QUEUES];
    bool *busy;
    bool controlling; /* a control thread is at work */
};

void load_create(struct load *load, const struct variant *variant, const struct load_options *options);
void load_destroy(struct load *load);

/* Make the image, then run the whole load, recorded. The image's making is not recorded; faults are at work from the
 * opening on. 0, or -errno where the image could not even be opened. */
int load_run(struct load *load, struct fault *fault);

/* Is `upper` a part of the image at `moment`? */
bool load_has_upper(const struct load *load, uint64_t moment);
/* Open what `file` holds as the load's image, below `upper` unless that is NULL. NULL with `err` filled. */
struct image *load_open(struct load *load, struct memory *file, struct memory *upper, bool read_only,
                        struct error *err);

/* Read `size` bytes from the start on a loop of the caller's. 0 or -errno. */
int load_read(struct image *image, struct io_loop *loop, uint8_t *content, uint64_t size);

/* Where PLATTER_CRASH_VERBOSE is set: all that happened, by moments, to standard error. */
void load_tell(const struct load *load);

void stamp_fill(uint8_t *to, uint64_t mark, uint64_t granule, uint64_t generation);
/* The generation, -1 for zeros, -2 torn, -3 foreign. */
int64_t stamp_read(const uint8_t *from, uint64_t mark, uint64_t granule);

#endif
