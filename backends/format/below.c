// SPDX-License-Identifier: Apache-2.0
/* What a format calls on a loop's thread: ending a request, asking the layer below, answering IMAGE_STATUS. */
#include "backends/format/core.h"
#include "common/checked.h"

void layer_request_done(struct image_request *request, int result)
{
    if (request->chain)
        request->chain(request, result);
    else
        request->done(request, result);
}

bool layer_status_add(struct image_status *status, uint64_t length, uint32_t state)
{
    struct image_extent *last = status->count ? &status->extents[status->count - 1] : NULL;
    if (length == 0)
        return true;
    if (last && last->state == state) {
        last->length += length;
        return true;
    }
    if (status->count >= status->max || !status->extents)
        return false;
    status->extents[status->count++] = (struct image_extent){length, state};
    return true;
}

static void answer_zeros(struct image_request *request)
{
    if (request->op == IMAGE_STATUS)
        (void)layer_status_add(request->status, request->length, IMAGE_EXTENT_ZERO);
    else
        iov_fill_zero(request->iov, request->iovcnt, 0, request->length);
    layer_request_done(request, 0);
}

void layer_submit_below(struct layer_queue *lq, struct image_request *request)
{
    struct layer_queue *below = lq->below;
    request->queue = lq->queue;
    request->chain = NULL;
    if (!below || request->offset >= below->layer->size) {
        answer_zeros(request);
        return;
    }
    uint64_t there = below->layer->size - request->offset;
    if (unlikely(request->length > there)) {
        if (request->op == IMAGE_READ)
            iov_fill_zero(request->iov, request->iovcnt, there, request->length - there);
        request->length = there;
    }
    below->layer->ops->submit(below, request);
}
