// SPDX-License-Identifier: Apache-2.0
/* IMAGE_STATUS: the states of this layer, and of those below where it holds nothing, as deep as was asked. */
#include <errno.h>

#include "backends/format/qcow2/data.h"
#include "common/checked.h"

#define RUNS_A_TURN 64u

static void below_done(struct image_request *child, int result)
{
    struct chunk *chunk = child->owner;
    struct image_request *request = chunk->request;
    const struct image_status *found = &chunk->child_status;
    uint64_t covered = 0;
    /* The child's extents stand behind ours in the same array: they move forward or stay. */
    for (unsigned i = 0; result == 0 && i < found->count; i++) {
        struct image_extent extent = found->extents[i];
        (void)layer_status_add(request->status, extent.length, extent.state);
        covered += extent.length;
    }
    chunk->child_result = result < 0 ? result : covered ? 0 : -EIO;
    chunk->skip += covered;
    request->position += covered;
    chunk_yield(chunk);
}

/* False when there is no room for another extent. */
static bool ask_below(struct chunk *chunk, uint64_t offset, uint64_t length)
{
    struct image_status *status = chunk->request->status;
    struct image_request *child = &chunk->child[0];
    if (status->count == status->max)
        return false;
    chunk->child_status =
        (struct image_status){.extents = status->extents + status->count, .max = status->max - status->count};
    *child = (struct image_request){
        .op = IMAGE_STATUS,
        .offset = offset,
        .length = length,
        .status = &chunk->child_status,
        .layers = chunk->request->layers ? chunk->request->layers - 1 : 0,
        .done = below_done,
        .owner = chunk,
    };
    layer_submit_below(&chunk->queue->base, child);
    return true;
}

/* Does the layer below have a say? */
static bool goes_below(const struct chunk *chunk, uint64_t offset)
{
    return chunk->request->layers != 1 && !below_empty(chunk->queue->q, offset);
}

/* Of a run that this layer leaves to those below, when they have no say. */
static uint32_t state_of_hole(const struct chunk *chunk)
{
    uint32_t layers = chunk->request->layers;
    /* The layer below is asked too, and too short: whatever lies under it does not show. */
    bool short_below = layers != 1 && chunk->queue->q->base.below;
    return layers && !short_below ? IMAGE_EXTENT_ABSENT : IMAGE_EXTENT_ZERO;
}

static uint32_t state_of(const struct chunk *chunk, enum map_kind kind)
{
    switch (kind) {
    case MAP_DATA:
    case MAP_COMPRESSED:
        return IMAGE_EXTENT_ALLOCATED;
    case MAP_ZERO:
        return IMAGE_EXTENT_ALLOCATED | IMAGE_EXTENT_ZERO;
    case MAP_BELOW:
        break;
    }
    return state_of_hole(chunk);
}

bool status_step(struct chunk *chunk)
{
    struct image_request *request = chunk->request;
    if (chunk->child_result < 0) {
        int r = chunk->child_result;
        chunk->child_result = 0;
        return chunk_fail(chunk, r);
    }
    for (unsigned i = 0; i < RUNS_A_TURN && chunk->skip < request->length; i++) {
        uint64_t offset = request->offset + chunk->skip;
        struct mapping mapping;
        int r = map_wait(chunk, offset, request->length - chunk->skip, MAP_ANYWHERE, &mapping);
        if (r == CHUNK_PARKED)
            return false;
        if (r < 0)
            return chunk_fail(chunk, r);
        bool below = mapping.kind == MAP_BELOW && goes_below(chunk, offset);
        if (below && ask_below(chunk, offset, mapping.length))
            return false;
        if (below || !layer_status_add(request->status, mapping.length, state_of(chunk, mapping.kind)))
            break;
        chunk->skip += mapping.length;
        request->position += mapping.length;
    }
    /* A prefix is enough. */
    return chunk_skip(chunk, request->length - chunk->skip);
}
