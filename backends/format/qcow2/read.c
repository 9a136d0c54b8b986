// SPDX-License-Identifier: Apache-2.0
/* Reading: each run goes to where its bytes are. */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "backends/format/qcow2/data.h"
#include "common/checked.h"

static void below_done(struct image_request *child, int result)
{
    chunk_done(child->owner, result);
}

static bool read_below(struct chunk *chunk, uint64_t offset, uint64_t length)
{
    const struct image_request *request = chunk->request;
    if (below_empty(chunk->queue->q, offset)) {
        iov_fill_zero(request->iov, request->iovcnt, chunk->skip, length);
        return chunk_skip(chunk, length);
    }
    length = chunk_map_iov(chunk, length);
    struct image_request *child = &chunk->child[0];
    *child = (struct image_request){
        .op = IMAGE_READ,
        .offset = offset,
        .length = length,
        .iov = chunk->op.iov,
        .iovcnt = chunk->op.iovcnt,
        .done = below_done,
        .queue = chunk->queue->base.queue,
        .owner = chunk,
    };
    chunk_begin(chunk, length);
    layer_submit_below(&chunk->queue->base, child);
    return true;
}

bool read_step(struct chunk *chunk)
{
    const struct image_request *request = chunk->request;
    uint64_t offset = request->offset + chunk->skip;
    struct mapping mapping;
    int r = map_wait(chunk, offset, request->length - chunk->skip, 0, &mapping);
    if (r == CHUNK_PARKED)
        return false;
    if (r < 0)
        return chunk_fail(chunk, r);
    switch (mapping.kind) {
    case MAP_DATA:
        return chunk_transfer(chunk, IO_READ, mapping.host, mapping.length);
    case MAP_ZERO:
        iov_fill_zero(request->iov, request->iovcnt, chunk->skip, mapping.length);
        return chunk_skip(chunk, mapping.length);
    case MAP_BELOW:
        return read_below(chunk, offset, mapping.length);
    case MAP_COMPRESSED:
        return compressed_read(chunk, &mapping);
    }
    return chunk_fail(chunk, -EIO);
}
