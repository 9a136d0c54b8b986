// SPDX-License-Identifier: Apache-2.0
/*
 * The moment of a group's snapshots: freeze file systems -> flush every server -> hold every server -> snapshot each -> release
 * -> thaw.
 *
 * The point in time lies between the last hold and the first snapshot: then no server answers anything, so whatever was
 * answered before is in the snapshots, and whatever depends on an answer cannot have been asked yet. A snapshot is taken only within
 * a hold that has lasted (the server sees to that), so it shows this moment. What can take long (files, locks, flushes) is
 * done before the first hold. A hold ends with platterd's connection or at its deadline.
 *
 * "told" is recorded, with a flush of the catalogue, before the first hold: a run that finds it does not know what became of
 * the last one, and fails.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/log.h"
#include "common/text.h"
#include "provisioner/node/freeze.h"
#include "provisioner/volume/group.h"
#include "provisioner/volume/server.h"

#define HOLD_MS 10000 /* guests wait as long only if platterd hangs without dying */

/* A member with a writer. */
struct held {
    struct job member;
    struct blk_client *client;
    struct layer_record layer;
    int fd; /* the new top's */
    bool held;
    uint64_t token;
};

struct moment {
    struct held *held;
    size_t count;
    uint64_t start; /* us: when the first hold was asked for */
};

static void moment_done(struct moment *moment)
{
    for (size_t i = 0; i < moment->count; i++)
        cleanup_close(&moment->held[i].fd);
    free(moment->held);
}

static int attachment_mount(struct job *member, struct snapshot_mount *ret_mount, struct error *err)
{
    struct attachment_record a = {0};
    int r = catalogue_attachment_find(member->manager->catalogue, job_get(member, "writer"), &a, err);
    if (r == 0)
        snapshot_find_mount(&a, ret_mount);
    attachment_record_done(&a);
    return r;
}

static bool freezes(const struct job *member)
{
    return json_is_true(json_object_get(member->data, "freeze"));
}

static int freeze_of(struct job *member, struct error *err)
{
    struct snapshot_mount mount = {0};
    int r = attachment_mount(member, &mount, err);
    CLEANUP_FREE char *path = mount.path;
    if (r == 0 && !path)
        r = error_set(err, ENOENT, "the mount of volume '%s' is gone: nothing to freeze", member->record.volume_name);
    if (r == 0)
        r = freeze_begin(path, mount.rdev, err);
    return r < 0 ? r : job_set(member, "consistency", "filesystem", err);
}

int group_thaw(struct job *job, struct error *err)
{
    int result = 0;
    for (size_t i = 0; i < group_count(job); i++) {
        struct job member = group_member_job(job, i);
        struct snapshot_mount mount = {0};
        if (!freezes(&member) || attachment_mount(&member, &mount, NULL) < 0)
            continue; /* an attachment that is gone is frozen no more */
        CLEANUP_FREE char *path = mount.path;
        int r = path ? freeze_end(path, mount.rdev, err) : 0;
        result = result ? result : r;
    }
    return result;
}

/* Connections, files and locks: all that needs no hold. */
static int prepare(struct job *job, struct moment *moment, struct error *err)
{
    int r = 0;
    moment->held = calloc(group_count(job), sizeof(*moment->held));
    if (!moment->held)
        return error_sys(err, ENOMEM, "hold the group's volumes");
    for (size_t i = 0; r == 0 && i < group_count(job); i++) {
        struct held *h = &moment->held[moment->count];
        *h = (struct held){.member = group_member_job(job, i), .fd = -1};
        if (!job_get(&h->member, "writer")[0])
            continue;
        moment->count++;
        r = server_connect(job->manager, job_get(&h->member, "writer"), &h->client, err);
        if (r == 0)
            r = snapshot_open_top(&h->member, &h->layer, &h->fd, err);
    }
    return r;
}

static int tell(struct job *job, struct error *err)
{
    int r = job_set(job, "told", "yes", err);
    if (r == 0)
        r = catalogue_begin(job->manager->catalogue, err);
    return r < 0 ? r : transaction_end(job->manager, job_save(job, err), err);
}

static uint64_t now_us(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static int hold_all(struct job *job, struct moment *moment, struct error *err)
{
    int r = 0;
    for (size_t i = 0; r == 0 && i < moment->count; i++)
        r = blk_flush(moment->held[i].client, err); /* so that little is left for the holds */
    moment->start = now_us();
    for (size_t i = 0; r == 0 && i < moment->count; i++) {
        struct held *h = &moment->held[i];
        r = blk_hold(h->client, HOLD_MS, &h->token, err);
        h->held = r == 0;
    }
    crash_point(job->kind->name, "switch", ":held");
    return r;
}

static int snapshot_all(struct job *job, struct moment *moment, struct error *err)
{
    int r = 0;
    for (size_t i = 0; r == 0 && i < moment->count; i++) {
        struct held *h = &moment->held[i];
        struct blk_layer layer = {.format = h->layer.format, .fd = h->fd};
        r = blk_snapshot_held(h->client, h->layer.id, &layer, h->token, err);
        if (r < 0)
            return error_prefix(err, "volume '%s'", h->member.record.volume_name);
        crash_point(job->kind->name, "switch", i == 0 ? ":first" : ":next");
    }
    return r;
}

/* A server that does not answer lets go by itself. */
static void release_all(struct moment *moment)
{
    for (size_t i = 0; i < moment->count; i++) {
        struct error local = ERROR_INIT;
        struct held *h = &moment->held[i];
        if (h->held && blk_release(h->client, h->token, NULL, &local) < 0)
            log_warning("volume '%s': %s", h->member.record.volume_name, local.message);
    }
}

static int freeze_all(struct job *job, struct error *err)
{
    int r = 0;
    for (size_t i = 0; r == 0 && i < group_count(job); i++) {
        struct job member = group_member_job(job, i);
        if (freezes(&member))
            r = freeze_of(&member, err);
    }
    crash_point(job->kind->name, "switch", ":frozen");
    return r;
}

int group_switch(struct job *job, struct error *err)
{
    CLEANUP(moment_done) struct moment moment = {0};
    struct error thaw = ERROR_INIT;
    if (job_get(job, "told")[0]) {
        (void)error_set(err, EINTR, "platterd ended while it took the snapshots: they need not show one point in time");
        return error_code(err, "interrupted");
    }
    int r = prepare(job, &moment, err);
    if (r < 0 || moment.count == 0)
        return r;
    r = tell(job, err);
    if (r == 0)
        r = freeze_all(job, err);
    if (r == 0)
        r = hold_all(job, &moment, err);
    if (r == 0)
        r = snapshot_all(job, &moment, err);
    release_all(&moment);
    if (r == 0)
        r = job_set_number(job, "pause_us", now_us() - moment.start, err);
    if (group_thaw(job, &thaw) < 0)
        log_error("group of volume '%s': %s", job->record.volume_name, thaw.message);
    return r;
}

/* ---- back ---------------------------------------------------------------------------------------------------- */

/* Has the server the new top now? 1: yes, or it was not to be found out since it has ended (what it wrote is in the chain
 * with the new top for certain). 0: it has not. Asking a second time is harmless: the layer's id tells. */
static int has_top(struct job *job, struct job *member, struct error *err)
{
    struct blk_client *client;
    struct layer_record layer = {0};
    CLEANUP_CLOSE int fd = -1;
    int r = server_connect(member->manager, job_get(member, "writer"), &client, err);
    if (r == -ENOENT) {
        error_clear(err);
        return 1;
    }
    if (r < 0)
        return r;
    if (!job_get(job, "told")[0])
        return 0;
    r = snapshot_open_top(member, &layer, &fd, err);
    if (r < 0)
        return r;
    struct blk_layer blk_layer = {.format = layer.format, .fd = fd};
    r = blk_snapshot(client, layer.id, &blk_layer, err);
    if (r == 0)
        return 1;
    if (snapshot_unknown(r) || r == -EBUSY) /* EBUSY: held, so it has not been asked */
        return r;
    error_clear(err); /* refused: it goes on as it was */
    return 0;
}

/* Is the new top's file still there? A run before this one may have removed it, which a power cut made the record forget. */
static bool file_exists(struct job *member)
{
    struct layer_record layer = {0};
    CLEANUP_POOL struct pool *pool = NULL;
    CLEANUP_CLOSE int fd = -1;
    return catalogue_layer_find(member->manager->catalogue, job_get(member, "layer"), &layer, NULL) < 0 ||
           manager_pool_open(member->manager, layer.pool_id, &pool, NULL) < 0 ||
           pool->ops->image_open(pool, layer.id, true, &fd, NULL) != -ENOENT;
}

int group_settle(struct job *job, struct job *member, struct error *err)
{
    struct snapshot_record s = {0};
    const char *layer = job_get(member, "layer");
    int r = group_member_snapshot(member, &s, err);
    if (r < 0)
        return r;
    r = job_get(member, "writer")[0] && file_exists(member) ? has_top(job, member, err) : 0;
    if (r < 0)
        return r;
    bool kept = r > 0;
    r = kept ? snapshot_change_top(member, layer, s.layer_id, true, err)
             : snapshot_change_top(member, s.layer_id, s.layer_id, false, err);
    if (r == 0 && kept)
        r = step_sidecar(member, err);
    return r < 0 ? r : job_set(member, kept ? "kept" : "back", "yes", err);
}
