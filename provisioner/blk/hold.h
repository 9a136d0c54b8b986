/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server's requests "hold" and "release": no request of the image's clients is answered in between, so that snapshots of
 * several images show one point in time. A hold ends by itself at its deadline and when the connection that asked for it
 * ends, so that no platterd, dead or stuck, leaves a guest hanging. Control thread.
 */
#ifndef PLATTER_PROVISIONER_BLK_HOLD_H
#define PLATTER_PROVISIONER_BLK_HOLD_H

#include <jansson.h>

#include "backends/format/image.h"

#define HOLD_DEFAULT_MS 2000
#define HOLD_MAX_MS 30000

struct hold {
    struct image *image; /* NULL = nothing is held */
    const void *owner;   /* who asked: the connection, to be compared only */
    uint64_t token;      /* of this hold or, between two, of the one before; never 0 once one was there */
    int64_t deadline;    /* ms of the monotonic clock */
};

/* Flush, then hold. Members: "deadline_ms" (HOLD_DEFAULT_MS; at most HOLD_MAX_MS); to the answer goes "token".
 * -EBUSY: held already, or requests wait for space (which would keep the hold waiting). */
int hold_begin(struct hold *hold, struct image *image, const void *owner, const json_t *request, json_t *answer,
               struct error *err);

/* Is it `request`'s member "hold" that holds the image? -ESTALE, code "hold-expired": no, it ended. Without the member: 0 when
 * nothing is held, else -EBUSY. */
int hold_check(const struct hold *hold, const json_t *request, struct error *err);

/* Members: "token". To the answer goes "held": false when the hold had ended before. */
int hold_release(struct hold *hold, const json_t *request, json_t *answer, struct error *err);

/* End the hold, if there is one; that of `owner` only; when its time has come. */
void hold_end(struct hold *hold);
void hold_end_of(struct hold *hold, const void *owner);
void hold_expire(struct hold *hold);

/* For poll: ms until the deadline, -1 when nothing is held. */
int hold_timeout(const struct hold *hold);

#endif
