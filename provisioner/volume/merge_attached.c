// SPDX-License-Identifier: Apache-2.0
/*
 * See merge_attached.h. Whatever dies at whatever moment: the catalogue's chain, with both layers, reads right until the rename,
 * as `upper` covers what is written to `lower`; and a server that has the shorter chain already reads the same.
 */
#include "provisioner/volume/merge_attached.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/log.h"
#include "common/text.h"
#include "provisioner/node/image_lock.h"
#include "provisioner/volume/server.h"

enum { LOCK_WAIT_MS = 3000, LOCK_PAUSE_MS = 20 };

int merge_attachment(struct manager *m, const struct volume_record *volume, char ret_id[ID_MAX], struct error *err)
{
    struct attachment_record *list;
    size_t count = 0;
    int r = catalogue_attachment_list(m->catalogue, volume->id, &list, &count, err);
    if (r < 0)
        return r;
    bool live = count == 1 && !list[0].snapshot_id[0] && strcmp(list[0].state, "attached") == 0 &&
                strcmp(list[0].via, "loop") != 0;
    (void)snprintf(ret_id, ID_MAX, "%s", live ? list[0].id : "");
    attachment_records_free(list, count);
    return live ? 0 : volume_check_unused(m, volume, err);
}

/* Of two sizes: making the lower one larger may move its tables, which nothing covers. Imported as it is: it may hold compressed or
 * shared clusters, which move when they are written to. */
bool merge_attached_fits(const struct volume_record *volume, const struct layer_record *lower,
                         const struct layer_record *upper)
{
    return upper->frozen && lower->frozen && !lower->preserved && strcmp(upper->id, volume->top_layer) != 0 &&
           upper->size == lower->size;
}

/* ---- the server's chain ------------------------------------------------------------------------------------------ */

/* A server that has just let go of a file closes it, and with it its lock, in its own time. */
static int change_lock(int fd, enum image_lock_mode from, enum image_lock_mode to, const char *name, struct error *err)
{
    const struct timespec pause = {.tv_nsec = LOCK_PAUSE_MS * 1000L * 1000};
    int r = image_lock_change(fd, from, to, name, NULL);
    for (unsigned waited = 0; r == -EBUSY && waited < LOCK_WAIT_MS; waited += LOCK_PAUSE_MS) {
        (void)nanosleep(&pause, NULL);
        r = image_lock_change(fd, from, to, name, NULL);
    }
    return r < 0 ? image_lock_change(fd, from, to, name, err) : 0; /* with the error's words */
}

static int open_layer(struct job *job, const struct layer_record *record, bool shared, struct blk_layer *ret_layer,
                      struct error *err)
{
    CLEANUP_POOL struct pool *pool = NULL;
    CLEANUP_CLOSE int fd = -1;
    int r = manager_pool_open(job->manager, record->pool_id, &pool, err);
    if (r == 0)
        r = pool->ops->image_open(pool, record->id, true, &fd, err);
    if (r == 0)
        r = image_lock_take(fd, shared ? IMAGE_LOCK_FOLLOWER : IMAGE_LOCK_READER, job->record.volume_name, err);
    if (r == 0)
        *ret_layer = (struct blk_layer){.format = record->format, .fd = steal_fd(&fd)};
    return r;
}

/* The catalogue's chain below the top, without the layer `skip`; `shared` with the lock that suffers a writer. "" = none. */
static int tell_server(struct job *job, const char *skip, const char *shared, struct error *err)
{
    struct manager *m = job->manager;
    CLEANUP_FREE struct layer_record *records = NULL;
    struct blk_layer layers[BLK_LAYERS_MAX];
    struct volume_record volume = {0};
    struct blk_client *client;
    size_t count = 0, opened = 0;
    int r = server_connect(m, job_get(job, "server"), &client, err);
    if (r == -ENOENT)
        return error_set(err, ESTALE, "the block server of volume '%s' has ended", job->record.volume_name);
    if (r == 0)
        r = job_volume(job, &volume, err);
    if (r == 0)
        r = catalogue_layer_chain(m->catalogue, volume.top_layer, &records, &count, err);
    for (size_t i = 1; r == 0 && i < count && opened < BLK_LAYERS_MAX; i++) {
        if (strcmp(records[i].id, skip) == 0)
            continue;
        r = open_layer(job, &records[i], strcmp(records[i].id, shared) == 0, &layers[opened], err);
        opened += r == 0;
    }
    if (r == 0 && opened > 0)
        r = blk_rebase(client, layers, opened, err);
    for (size_t i = 0; i < opened; i++)
        cleanup_close(&layers[i].fd);
    return r;
}

/* ---- the three moments ------------------------------------------------------------------------------------------- */

int merge_attached_share(struct job *job, const char *attachment_id, const struct layer_record *lower, int lower_fd,
                         struct error *err)
{
    crash_point(job->kind->name, "share", "");
    int r = job_set(job, "server", attachment_id, err);
    if (r == 0)
        r = job_save(job, err);
    if (r == 0)
        r = tell_server(job, "", lower->id, err);
    if (r == 0)
        r = change_lock(lower_fd, IMAGE_LOCK_READER, IMAGE_LOCK_WRITER, job->record.volume_name, err);
    crash_point(job->kind->name, "share", ":after");
    return r;
}

int merge_attached_switch(struct job *job, const struct layer_record *upper, struct error *err)
{
    crash_point(job->kind->name, "switch", "");
    int r = tell_server(job, upper->id, "", err);
    if (r == -ESTALE) {
        error_clear(err);
        r = 0;
    }
    crash_point(job->kind->name, "switch", ":after");
    return r < 0 ? r : job_set(job, "server", "", err); /* recorded with the rename that follows */
}

void merge_attached_restore(struct job *job)
{
    struct error err = ERROR_INIT;
    if (!job_get(job, "server")[0])
        return;
    int r = tell_server(job, "", "", &err);
    if (r < 0 && r != -ESTALE)
        log_warning("volume '%s' keeps a weaker lock on one of its layers until it is detached: %s",
                    job->record.volume_name, err.message);
    (void)job_set(job, "server", "", NULL); /* else the next run of the job does this again, which is harmless */
}
