// SPDX-License-Identifier: Apache-2.0
/*
 * Reading compressed clusters ("Compressed Clusters"): read what the entry spans, decompress on a worker thread, keep
 * the result in one of a few slots of the queue, so that a cluster read in pieces is decompressed once. Compressed clusters
 * are never written here, so a slot stays right as long as entries point to it.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "backends/format/qcow2/data.h"
#include "common/checked.h"
#include "common/cleanup.h"

#define SLOT_BYTES (1 * MIB)
#define SLOTS_MIN 2u
#define SLOTS_MAX 16u
#define READ_ALIGN UINT64_C(4096)
/* A frame for one cluster needs no larger window; bounds what a hostile one makes us allocate. */
#define ZSTD_WINDOW_LOG_MAX 24

enum slot_state { SLOT_EMPTY, SLOT_LOADING, SLOT_VALID };

struct inflate_slot {
    struct data_queue *queue;
    enum slot_state state;
    uint64_t host;   /* bytes: what it holds, by the place of the compressed data */
    uint32_t length; /* bytes of that */
    uint64_t stamp;  /* last use */
    struct chunk *chunks;
    uint8_t *in, *out, *data; /* data: the compressed bytes within `in` */
    struct io_op op;
    struct iovec iov;
    struct keeper_job job;
};

struct inflate_slots {
    struct data_queue *queue;
    unsigned count;
    uint64_t clock;
    uint8_t *memory;
    size_t in_size, memory_size;
    struct chunk *waiting, **waiting_tail; /* for a slot */
    struct inflate_slot slots[SLOTS_MAX];
};

/* One for a layer; its state belongs to the worker's thread. */
struct inflater {
    struct keeper *worker;
    z_stream zlib;
    ZSTD_DCtx *zstd;
};

/* ---- the worker ------------------------------------------------------------------------------------------------ */

int inflater_create(struct qcow2 *q, struct inflater **ret_inflater, struct error *err)
{
    struct inflater *inflater = calloc(1, sizeof(*inflater));
    if (!inflater)
        return error_sys(err, ENOMEM, "decompression");
    bool ready;
    if (q->header.compression == QCOW2_COMPRESSION_ZSTD) {
        inflater->zstd = ZSTD_createDCtx();
        ready = inflater->zstd &&
                !ZSTD_isError(ZSTD_DCtx_setParameter(inflater->zstd, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG_MAX));
    } else {
        ready = inflateInit2(&inflater->zlib, -MAX_WBITS) == Z_OK; /* raw deflate, any window up to the largest */
    }
    int r = ready ? keeper_create("qcow2-inflate", &inflater->worker, err) : error_sys(err, ENOMEM, "decompression");
    if (r < 0)
        inflater_destroy(inflater);
    else
        *ret_inflater = inflater;
    return r;
}

struct inflater *inflater_destroy(struct inflater *inflater)
{
    if (!inflater)
        return NULL;
    keeper_destroy(inflater->worker);
    (void)inflateEnd(&inflater->zlib); /* no harm where it was never begun */
    (void)ZSTD_freeDCtx(inflater->zstd);
    free(inflater);
    return NULL;
}

static int inflate_zlib(struct inflater *inflater, const struct inflate_slot *slot, size_t size)
{
    z_stream *z = &inflater->zlib;
    if (inflateReset(z) != Z_OK)
        return -EIO;
    z->next_in = slot->data;
    z->avail_in = slot->length;
    z->next_out = slot->out;
    z->avail_out = (uInt)size;
    int r = inflate(z, Z_FINISH);
    return (r == Z_STREAM_END || r == Z_BUF_ERROR) && z->avail_out == 0 ? 0 : -EIO;
}

static int inflate_zstd(struct inflater *inflater, const struct inflate_slot *slot, size_t size)
{
    ZSTD_inBuffer in = {.src = slot->data, .size = slot->length};
    ZSTD_outBuffer out = {.dst = slot->out, .size = size};
    if (ZSTD_isError(ZSTD_DCtx_reset(inflater->zstd, ZSTD_reset_session_only)))
        return -EIO;
    while (out.pos < out.size) {
        size_t in_before = in.pos, out_before = out.pos;
        if (ZSTD_isError(ZSTD_decompressStream(inflater->zstd, &out, &in)) ||
            (in.pos == in_before && out.pos == out_before))
            return -EIO;
    }
    return 0;
}

static int inflate_run(struct keeper_job *job)
{
    struct inflate_slot *slot = (struct inflate_slot *)((char *)job - offsetof(struct inflate_slot, job));
    const struct qcow2 *q = slot->queue->q;
    struct inflater *inflater = q->data->inflater;
    return inflater->zstd ? inflate_zstd(inflater, slot, q->cluster_size)
                          : inflate_zlib(inflater, slot, q->cluster_size);
}

/* ---- slots ----------------------------------------------------------------------------------------------------- */

int inflate_slots_create(struct data_queue *queue, struct inflate_slots **ret_slots, struct error *err)
{
    const struct qcow2 *q = queue->q;
    struct inflate_slots *slots = calloc(1, sizeof(*slots));
    if (!slots)
        return error_sys(err, ENOMEM, "decompression buffers");
    slots->queue = queue;
    slots->waiting_tail = &slots->waiting;
    slots->count = (unsigned)MIN(MAX(SLOT_BYTES / q->cluster_size, SLOTS_MIN), SLOTS_MAX);
    size_t out_size = MAX(q->cluster_size, READ_ALIGN);
    slots->in_size = 2 * q->cluster_size + 2 * READ_ALIGN;
    slots->memory_size = slots->count * (slots->in_size + out_size);
    slots->memory = data_map(slots->memory_size, true);
    if (!slots->memory) {
        free(slots);
        return error_sys(err, ENOMEM, "decompression buffers");
    }
    for (unsigned i = 0; i < slots->count; i++) {
        slots->slots[i].queue = queue;
        slots->slots[i].in = slots->memory + i * (slots->in_size + out_size);
        slots->slots[i].out = slots->slots[i].in + slots->in_size;
    }
    *ret_slots = slots;
    return 0;
}

struct inflate_slots *inflate_slots_destroy(struct inflate_slots *slots)
{
    if (slots)
        data_unmap(slots->memory, slots->memory_size);
    free(slots);
    return NULL;
}

static void copy_out(const struct inflate_slot *slot, struct chunk *chunk, uint64_t length)
{
    const struct image_request *request = chunk->request;
    uint64_t in_cluster = (request->offset + chunk->skip) & (slot->queue->q->cluster_size - 1);
    iov_from_buffer(request->iov, request->iovcnt, chunk->skip, slot->out + in_cluster, length);
}

static void slot_end(struct inflate_slot *slot, int result)
{
    struct inflate_slots *slots = slot->queue->slots;
    struct chunk *chunk = slot->chunks;
    slot->chunks = NULL;
    slot->state = result < 0 ? SLOT_EMPTY : SLOT_VALID;
    /* First all copies: ending a chunk may start another read that takes this slot. */
    for (struct chunk *c = chunk; result == 0 && c; c = c->next)
        copy_out(slot, c, c->length);
    while (chunk) {
        struct chunk *next = chunk->next;
        chunk_done(chunk, result);
        chunk = next;
    }
    chunk = slots->waiting;
    slots->waiting = NULL;
    slots->waiting_tail = &slots->waiting;
    while (chunk) {
        struct chunk *next = chunk->next;
        chunk_resume(chunk);
        chunk = next;
    }
}

static void inflate_done(struct keeper_job *job, int result)
{
    slot_end((struct inflate_slot *)((char *)job - offsetof(struct inflate_slot, job)), result);
}

static void read_done(struct io_op *op, int result)
{
    struct inflate_slot *slot = (struct inflate_slot *)((char *)op - offsetof(struct inflate_slot, op));
    if (result < 0) {
        slot_end(slot, result);
        return;
    }
    slot->job = (struct keeper_job){.run = inflate_run, .done = inflate_done, .loop = slot->queue->loop};
    keeper_submit(slot->queue->q->data->inflater->worker, &slot->job);
}

static void slot_load(struct inflate_slot *slot, const struct mapping *mapping)
{
    uint64_t start = align_down(mapping->host, READ_ALIGN);
    uint64_t length = align_up(mapping->host + mapping->compressed, READ_ALIGN) - start;
    slot->state = SLOT_LOADING;
    slot->host = mapping->host;
    slot->length = mapping->compressed;
    slot->data = slot->in + (mapping->host - start);
    slot->iov = (struct iovec){.iov_base = slot->in, .iov_len = length};
    slot->op = (struct io_op){
        .kind = IO_READ,
        .file = slot->queue->base.layer->file,
        .iov = &slot->iov,
        .iovcnt = 1,
        .offset = start,
        .length = length,
        .done = read_done,
    };
    io_submit(slot->queue->loop, &slot->op);
}

/* The slot that holds or loads it, else the one to replace, else NULL. */
static struct inflate_slot *slot_find(struct inflate_slots *slots, const struct mapping *mapping, bool *ret_hit)
{
    struct inflate_slot *oldest = NULL;
    for (unsigned i = 0; i < slots->count; i++) {
        struct inflate_slot *slot = &slots->slots[i];
        if (slot->state != SLOT_EMPTY && slot->host == mapping->host && slot->length == mapping->compressed) {
            *ret_hit = true;
            return slot;
        }
        if (slot->state != SLOT_LOADING && (!oldest || slot->stamp < oldest->stamp))
            oldest = slot;
    }
    *ret_hit = false;
    return oldest;
}

static int inflater_ready(struct qcow2 *q)
{
    LOCK_SCOPE(&q->lock);
    return q->data->inflater ? 0 : inflater_create(q, &q->data->inflater, NULL);
}

bool compressed_read(struct chunk *chunk, const struct mapping *mapping)
{
    struct inflate_slots *slots = chunk->queue->slots;
    bool hit;
    struct inflate_slot *slot = slot_find(slots, mapping, &hit);
    if (!slot) {
        chunk->next = NULL;
        *slots->waiting_tail = chunk;
        slots->waiting_tail = &chunk->next;
        return false;
    }
    slot->stamp = ++slots->clock;
    if (hit && slot->state == SLOT_VALID) {
        copy_out(slot, chunk, mapping->length);
        return chunk_skip(chunk, mapping->length);
    }
    if (!hit) {
        /* The worker is made when the first compressed cluster is met: most images have none. */
        int r = inflater_ready(chunk->queue->q);
        if (r < 0)
            return chunk_fail(chunk, r);
        slot->chunks = NULL;
        slot_load(slot, mapping);
    }
    chunk_begin(chunk, mapping->length);
    chunk->next = slot->chunks;
    slot->chunks = chunk;
    return true;
}
