// SPDX-License-Identifier: Apache-2.0
#include "provisioner/blk/hold.h"

#include <errno.h>
#include <stdint.h>
#include <time.h>

#include "common/log.h"
#include "provisioner/blk/blocking.h"
#include "provisioner/blk/members.h"

static int64_t now_ms(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

int hold_begin(struct hold *hold, struct image *image, const void *owner, const json_t *request, json_t *answer,
               struct error *err)
{
    uint64_t limit_ms = HOLD_DEFAULT_MS;
    struct image_condition condition = {0};
    int r = member_u64(request, "deadline_ms", HOLD_MAX_MS, &limit_ms, err);
    if (r < 0)
        return r;
    if (hold->image)
        return error_set(err, EBUSY, "the image is held already");
    image_condition(image, &condition);
    if (condition.waiting)
        return error_set(err, EBUSY, "requests wait for space: the image cannot be held");
    r = blocking_flush_once(image, err);
    if (r == 0 && json_object_set_new(answer, "token", json_integer((json_int_t)hold->token + 1)) < 0)
        r = error_sys(err, ENOMEM, "answer");
    if (r < 0)
        return r;
    image_drain_begin(image);
    *hold = (struct hold){
        .image = image, .owner = owner, .token = hold->token + 1, .deadline = now_ms() + (int64_t)limit_ms};
    return 0;
}

int hold_check(const struct hold *hold, const json_t *request, struct error *err)
{
    uint64_t token = 0;
    if (!json_object_get(request, "hold"))
        return hold->image ? error_set(err, EBUSY, "the image is held for a group's snapshot") : 0;
    int r = member_u64(request, "hold", INT64_MAX, &token, err);
    if (r < 0 || (hold->image && token == hold->token))
        return r;
    (void)error_set(err, ESTALE, "the hold has ended before the snapshot: its time was over");
    return error_code(err, "hold-expired");
}

int hold_release(struct hold *hold, const json_t *request, json_t *answer, struct error *err)
{
    uint64_t token = 0;
    int r = member_u64(request, "token", INT64_MAX, &token, err);
    if (r < 0)
        return r;
    bool held = hold->image && token == hold->token;
    if (json_object_set_new(answer, "held", json_boolean(held)) < 0)
        return error_sys(err, ENOMEM, "answer");
    if (held)
        hold_end(hold);
    return 0;
}

void hold_end(struct hold *hold)
{
    if (!hold->image)
        return;
    image_drain_end(hold->image);
    hold->image = NULL;
    hold->owner = NULL;
}

void hold_end_of(struct hold *hold, const void *owner)
{
    if (hold->image && hold->owner == owner) {
        log_warning("hold: its connection has ended: requests go on");
        hold_end(hold);
    }
}

void hold_expire(struct hold *hold)
{
    if (hold->image && now_ms() >= hold->deadline) {
        log_warning("hold: nobody released it in time: requests go on");
        hold_end(hold);
    }
}

int hold_timeout(const struct hold *hold)
{
    if (!hold->image)
        return -1;
    int64_t left = hold->deadline - now_ms();
    return left > 0 ? (int)left : 0;
}
