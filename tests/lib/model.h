/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The differential model: random reads, writes, zeroings, discards and flushes of all sizes and alignments, at depth,
 * from several threads at once, against a plain array of bytes.
 *
 * How operations reach what is tested is pluggable (struct model_target), so that the same load runs on an image, on a
 * qcow2 chain, or through an export's client. Operations in flight never overlap unless both read, so the right answer
 * is always known; neighbours on other threads may share any cluster or block.
 *
 * Seeds are printed when something is wrong. MODEL_SEED=N in the environment overrides every seed.
 */
#ifndef PLATTER_TESTS_LIB_MODEL_H
#define PLATTER_TESTS_LIB_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backends/format/image.h"

#define MODEL_IOV_MAX 6u

struct model;

struct model_options {
    uint64_t size;       /* bytes of the image */
    uint64_t seed;       /* 0 = from the clock */
    unsigned threads;    /* 0 = 1; each has its own queue */
    unsigned depth;      /* operations in flight for each thread, 0 = 8 */
    unsigned operations; /* for each thread, 0 = 1000 */
    uint32_t alignment;  /* offsets, lengths and memory keep this; 0 = 1: any */
    uint32_t max_length; /* bytes, 0 = 256 KiB */
    bool no_discard;     /* targets that cannot: leave these kinds out */
    bool no_zeroes;
    bool no_writes;
    /* Errors that operations may end with (-ENOSPC, -EIO), 0-terminated. A write that failed leaves its range old,
     * new or mixed. NULL = none. */
    const int *tolerate;
};

/* One operation, prepared by the model. The target ends it with model_io_done, at once or later, on the same thread. */
struct model_io {
    enum image_op op; /* READ .. FLUSH */
    uint32_t flags;   /* IMAGE_FUA, IMAGE_MAY_UNMAP */
    uint64_t offset;
    uint64_t length;
    uint8_t *buffer;                 /* READ: to be filled; WRITE: the data */
    struct iovec iov[MODEL_IOV_MAX]; /* the same memory, cut at random places */
    unsigned iovcnt;

    struct image_request request; /* for targets that want one */

    struct model_thread *thread; /* the model's own, as is all below */
    uint8_t *memory;
    struct model_io *next;
    bool reserved;
};

void model_io_done(struct model_io *io, int result);

struct model_target {
    /* On a new thread: make its queue or connection. 0 or -errno. */
    int (*begin)(void *context, unsigned thread, void **ret_queue);
    void (*submit)(void *queue, struct model_io *io);
    /* Drive the queue until an operation may have ended. 0 or -errno. */
    int (*wait)(void *queue);
    void (*end)(void *queue);
};

/* Expects zeros everywhere. */
struct model *model_create(const struct model_options *options);
struct model *model_destroy(struct model *model);

/* The seed in use, for messages of the caller's own. */
uint64_t model_seed(const struct model *model);
/* Change the mix for the next run; size stays. */
void model_set_options(struct model *model, const struct model_options *options);

/* Say what is there already: `data` at `offset`. For setting up and for changes made by other means. */
void model_set(struct model *model, uint64_t offset, const void *data, uint64_t length);
/* Grow; the new space must read as zeros. Not during model_run. */
void model_grow(struct model *model, uint64_t size);

/* Run the mix. 0, or -1 after printing what was wrong, with the seed. */
int model_run(struct model *model, const struct model_target *target, void *context);
/* Read everything and compare. The same results. */
int model_verify(struct model *model, const struct model_target *target, void *context);
/* Compare bytes that the caller read. The same results. */
int model_compare(struct model *model, uint64_t offset, const void *data, uint64_t length);

/* A target for images: `context` is a struct image; each thread makes a loop (engine by PLATTER_IO_ENGINE) and a queue. */
extern const struct model_target model_image_target;

#endif
