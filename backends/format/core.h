/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the format-neutral core: what image.c, queue.c, gate.c and below.c share. Formats do not include it. */
#ifndef PLATTER_FORMAT_CORE_H
#define PLATTER_FORMAT_CORE_H

#include <stdatomic.h>

#include "backends/format/layer.h"

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define IMAGE_LAYERS_MAX 256u
#define IMAGE_QUEUES_MAX 64u

struct image {
    /* The chain, 0 = top, with room for IMAGE_LAYERS_MAX. Changed under lock by the control thread (snapshot.c, rebase.c), while the
     * gate is closed, every queue drained and `builders` 0; so under lock, in a request and as a builder it may be read. */
    struct layer **layers;
    struct io_file **files;
    size_t count;
    bool read_only;
    size_t cache_bytes; /* bound for the whole chain */

    /* Changed only while the gate is closed and every queue drained, under lock. */
    uint64_t size;
    uint32_t alignment;

    _Atomic int failed; /* 0 or the first -errno */

    /* space.c */
    atomic_bool wait_for_space;
    _Atomic unsigned space_waiting;
    _Atomic uint64_t space_refused;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct image_queue *queues[IMAGE_QUEUES_MAX]; /* lock */
    unsigned queue_count;                         /* lock */
    unsigned next_post;                           /* lock */

    /* The gate (gate.c), under lock. */
    bool gate_closed;
    unsigned gate_waiting;              /* queues that still have requests in flight */
    struct image_request *owners;       /* who wants the image alone, the first has or gets it */
    struct image_request **owners_tail; /* linked by next */
    struct image_request drain;         /* stands for the control thread among the owners */
    bool drain_granted;
    unsigned drains; /* how deep the control thread has drained the image; its alone */

    /* Flushes (flush.c), under lock. */
    bool flushing;
    struct image_request *flush_group;   /* end with the one that runs */
    struct image_request *flush_waiting; /* came while it ran */
    struct image_request **flush_waiting_tail;

    /* A change of the chain under way (chain.c), under lock. */
    unsigned builders; /* threads that create or destroy a queue just now */
    struct layer *
        *incoming; /* every queue gets its parts of these; the last one stands over the present top or nothing */
    size_t incoming_count;
    unsigned prepare_waiting; /* queues that have not done so, or not undone it */
    int prepare_result;       /* the first error */
    uint64_t snapshot_pause;  /* ns: how long the last snapshot held requests */

    pthread_mutex_t grace_lock; /* one grace period at a time */
    unsigned grace_waiting;     /* lock: queues that have not passed it */
};

struct image_queue {
    struct image *image;
    struct io_loop *loop;
    struct layer_queue *top;
    struct layer_queue **lqs;  /* one for each layer, with room for IMAGE_LAYERS_MAX */
    struct layer_queue **next; /* of image->incoming, or what has left the chain; the same room */
    size_t next_count;

    /* Loop's thread. Requests in flight are counted by the parity that was current when they started. */
    uint64_t in_flight[2];
    uint32_t parity;
    bool gated;   /* new requests are parked */
    bool waited;  /* someone waits for in_flight to fall: one of the next two */
    bool closing; /* the gate: both counts */
    bool grace;   /* a grace period: the count that is not current */
    struct image_request *parked;
    struct image_request **parked_tail;
    struct image_request *starved; /* put aside for want of space (space.c) */
    struct image_request **starved_tail;
    struct io_timer space_timer;
    uint64_t space_delay; /* ns */
    bool refuses_wait;
    struct image_request *exclusive; /* the owner granted on this queue, to be started by exclusive_task */

    /* Under image->lock. */
    bool drained;       /* reported for this closing of the gate */
    bool grace_pending; /* not yet reported for this grace period */
    bool prepare_pending;
    bool gate_posted;
    bool grace_posted;
    bool prepare_posted;
    bool flush_posted;
    struct image_request *flush_ready; /* for flush_task: to be issued, or to be ended */

    bool leaving; /* loop's thread: being destroyed */
    bool dead;    /* loop's thread: destroyed, the last posted task frees it */

    struct io_task gate_task;
    struct io_task grace_task;
    struct io_task prepare_task;
    struct io_task exclusive_task;
    struct io_task flush_task;
};

/* What is known of a request between submit and done, in image_request.stage. */
enum {
    STAGE_EXCLUSIVE = 1 << 0, /* owns the gate */
    STAGE_FLUSHING = 1 << 1,  /* FUA: the write is done, its flush under way; the true op is kept above */
    STAGE_LEADING = 1 << 2,   /* flush.c: its flush is to be issued */
    STAGE_OP_SHIFT = 8,
};

/* ---- queue.c: loop's thread ---- */

/* The gate lets it pass: check and start. */
void queue_start(struct image_queue *queue, struct image_request *request);
/* image_submit, for a request that came before. */
void queue_submit(struct image_queue *queue, struct image_request *request);
/* Hand to the top layer and count. */
void queue_issue(struct image_queue *queue, struct image_request *request);
/* The end of a counted request, flushes and all done. */
void queue_finish(struct image_request *request, int result);

/* Make or undo the queue of one layer, with all that goes with it. */
int queue_add_layer(struct image_queue *queue, struct layer *layer, struct layer_queue *below,
                    struct layer_queue **ret_lq, struct error *err);
void queue_remove_layer(struct image_queue *queue, struct layer_queue *lq);

/* ---- space.c: loop's thread ---- */

void space_queue_init(struct image_queue *queue);
/* `request`, not counted any more, ended with -ENOSPC: true when it was put aside, to be tried again. */
bool space_wait(struct image_request *request);
/* One that was put aside before is about to be answered. */
void space_served(struct image_request *request);

/* ---- flush.c: loop's thread ---- */

void flush_init(struct image *image);
void flush_queue_init(struct image_queue *queue);
/* Flush for `request` (counted as in flight, op IMAGE_FLUSH), now or together with others. */
void flush_submit(struct image_request *request);
/* The flush that was issued for `request` has ended: queue_finish for it and all that waited with it. */
void flush_done(struct image_request *request, int result);

/* ---- gate.c ---- */

void gate_init(struct image *image);
/* `owner` wants the image alone: closes the gate; when nothing is in flight any more the owner is granted: its request
 * is issued on its own queue's loop, or image_drain_begin returns. Any thread. */
void gate_enter(struct image *image, struct image_request *owner);
/* The current owner is done: the next one is granted, or the gate opens. Any thread. */
void gate_leave(struct image *image);
/* Loop's thread: a count fell to zero while someone waits. */
void gate_idle(struct image_queue *queue);

/* Make `queue` one of the image's; -EMFILE when there are too many. Loop's thread. */
int gate_add_queue(struct image_queue *queue);
/* Take it out; it is freed by queue_free now or by its last posted task. */
void gate_remove_queue(struct image_queue *queue);
void queue_free(struct image_queue *queue);
/* A posted task of `queue` runs, `posted` its mark: true when the queue is dead, then it is not to be touched. */
bool gate_task_of_dead(struct image_queue *queue, bool *posted);

/* ---- image.c: control thread ---- */

/* Open one more layer over options->below. It is not yet the image's. */
int image_open_layer(struct image *image, const struct image_layer *spec, const struct layer_open_options *options,
                     struct layer **ret_layer, struct error *err);
/* Half of the cache is the top layer's, the others share the rest. */
size_t image_cache_share(const struct image *image, size_t count, size_t index);
/* Under lock, drained: after the top layer or its size changed. */
void image_update_geometry(struct image *image);

/* ---- chain.c ---- */

/* Any thread: as long as builders are there the chain does not change. */
void chain_builder_enter(struct image *image);
void chain_builder_leave(struct image *image);
/* Under lock, control thread. */
void chain_wait_for_builders(struct image *image);
void chain_queue_init(struct image_queue *queue);
/* Loop's thread, a builder or the prepare task: the queue's parts of image->incoming; undo all that is in `next`. */
int chain_make_next(struct image_queue *queue, struct error *err);
void chain_drop_next(struct image_queue *queue);
/* Under lock: `queue` has done what was asked, or is gone. */
void chain_report_prepared(struct image_queue *queue, int result);
/* Control thread, blocks: have every queue make its parts of `layers` (the caller's until the next call), or, with none, undo
 * what it has in `next`. Returns the first error. */
int chain_prepare(struct image *image, struct layer **layers, size_t count);

/* ---- formats.c ---- */

/* NULL when there is no such format. */
const struct layer_ops *format_find(const char *name);

#endif
