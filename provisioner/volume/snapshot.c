// SPDX-License-Identifier: Apache-2.0
/*
 * snapshot-create: row of a new layer -> room for it -> its file -> its image -> one transaction (the old top is frozen, the new layer is the
 * top, the snapshot is there) -> the block server is told -> sidecar.
 *
 * The records change before the server does. Whatever happens in between, nothing that was flushed is lost: until it is told,
 * the server writes to the layer that the records call frozen, which the new one stands on, so a chain opened from the records
 * holds it all, and a server told twice does it once. Only a server that refuses (and so goes on as it was) lets the records
 * be put back; when it cannot be known whether it has, the snapshot stays, as "failed", and can be deleted.
 *
 * By reflink (reflink.h; not under a server whose file is in very many pieces) the new layer is the snapshot: nothing changes
 * but that its file is filled when the server is told, at one moment. A file that was not filled goes with the rows.
 */
#include "provisioner/volume/snapshot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "common/checked.h"
#include "common/log.h"
#include "common/text.h"
#include "provisioner/node/freeze.h"
#include "provisioner/node/image_lock.h"
#include "provisioner/node/loop.h"
#include "provisioner/volume/flatten.h"
#include "provisioner/volume/reflink.h"
#include "provisioner/volume/server.h"

/* ---- finding ------------------------------------------------------------------------------------------------- */

int snapshot_find(struct manager *m, const char *name, struct volume_record *ret_volume,
                  struct snapshot_record *ret_snapshot, struct error *err)
{
    const char *at = strchr(name, '@');
    char volume[NAME_MAX_BYTES];
    if (!at || at == name || !at[1] || (size_t)(at - name) >= sizeof(volume))
        return error_set(err, EINVAL, "'%s' is not VOLUME@SNAPSHOT", name);
    (void)snprintf(volume, sizeof(volume), "%.*s", (int)(at - name), name);
    int r = catalogue_volume_find(m->catalogue, volume, ret_volume, err);
    if (r < 0)
        return r;
    r = catalogue_snapshot_find(m->catalogue, ret_volume->id, at + 1, ret_snapshot, err);
    return r == -ENOENT ? error_set(err, ENOENT, "volume '%s' has no snapshot '%s'", ret_volume->name, at + 1) : r;
}

void snapshot_view(struct volume_record *v, const struct snapshot_record *s)
{
    text_copy(v->top_layer, s->layer_id);
    text_copy(v->filesystem, s->filesystem);
    text_copy(v->content, s->content);
    v->size = s->size;
    v->formatted = s->formatted;
    v->behind = s->behind;
}

int volume_or_snapshot_find(struct manager *m, const char *name, struct volume_record *ret_volume,
                            struct snapshot_record *ret_snapshot, struct error *err)
{
    *ret_snapshot = (struct snapshot_record){0};
    if (!strchr(name, '@'))
        return catalogue_volume_find(m->catalogue, name, ret_volume, err);
    int r = snapshot_find(m, name, ret_volume, ret_snapshot, err);
    if (r == 0 && strcmp(ret_snapshot->state, "available") != 0)
        r = error_set(err, EINVAL, "snapshot '%s' is %s", name, ret_snapshot->state);
    if (r == 0)
        snapshot_view(ret_volume, ret_snapshot);
    return r;
}

/* ---- the request --------------------------------------------------------------------------------------------- */

struct writers {
    bool any;
    bool server; /* a block server of ours: its writer waits while it is snapshot */
};

/* Can what is attached be snapshot? *ret_writers: who writes to the volume. */
static int check_attachments(struct manager *m, const struct volume_record *volume, bool freeze, bool reflink,
                             struct writers *ret_writers, struct error *err)
{
    struct attachment_record *list;
    size_t count = 0;
    bool mounted = false;
    int r = catalogue_attachment_list(m->catalogue, volume->id, &list, &count, err);
    for (size_t i = 0; r == 0 && i < count; i++) {
        const struct attachment_record *a = &list[i];
        if (a->snapshot_id[0] || a->read_only)
            continue;
        ret_writers->any = true;
        ret_writers->server = strcmp(a->via, "loop") != 0;
        mounted = mounted || strcmp(a->kind, "mount") == 0;
        if (strcmp(a->state, "attached") != 0)
            r = error_set(err, EBUSY, "attachment '%s' is %s", a->id, a->state);
        else if (strcmp(a->via, "loop") == 0 && !reflink) {
            (void)error_set(err, EOPNOTSUPP, "volume '%s' is attached as a loop device straight over its file",
                            volume->name);
            (void)error_hint(err, "detach it, or attach it with --via fuse");
            r = error_code(err, "snapshot-not-possible");
        }
    }
    if (count)
        attachment_records_free(list, count);
    if (r == 0 && freeze && !mounted)
        r = error_set(err, EINVAL, "volume '%s' is not mounted by platter: there is no file system to freeze",
                      volume->name);
    return r;
}

/* The layer that becomes the snapshot, or the one that takes writes from now on. */
static int insert_layer(struct job *job, const struct volume_record *volume, bool writer,
                        struct snapshot_intent *intent, struct error *err)
{
    struct manager *m = job->manager;
    struct layer_record top = {0};
    int r = catalogue_layer_find(m->catalogue, volume->top_layer, &top, err);
    if (r < 0)
        return r;
    if (intent->reflink) {
        r = reflink_fill(volume, "", volume->size, &intent->layer, err);
        intent->layer.frozen = true;
    } else {
        if (writer || !flatten_wanted(m, volume, BLK_LAYERS_MAX))
            r = overlay_check(m, volume->top_layer, err);
        if (r == 0)
            r = overlay_fill(volume, &top, volume->size, &intent->layer, err);
    }
    return r < 0 ? r : catalogue_layer_insert(m->catalogue, &intent->layer, err);
}

int snapshot_insert(struct job *job, void *arg, struct error *err)
{
    struct snapshot_intent *intent = arg;
    struct manager *m = job->manager;
    struct volume_record volume = {0};
    struct writers writers = {0};
    bool freeze = json_is_true(json_object_get(job->data, "freeze"));
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = volume_check_ready(m, &volume, err);
    if (r == 0)
        intent->reflink = intent->reflink && strcmp(job_get(job, "source"), volume.top_layer) == 0;
    if (r == 0)
        r = check_attachments(m, &volume, freeze, intent->reflink, &writers, err);
    if (r == 0)
        intent->reflink = intent->reflink && (intent->quick || !writers.server);
    if (r == 0)
        r = insert_layer(job, &volume, writers.any, intent, err);
    if (r < 0)
        return r;
    struct snapshot_record *s = &intent->snapshot;
    text_copy(s->volume_id, volume.id);
    text_copy(s->layer_id, intent->reflink ? intent->layer.id : volume.top_layer);
    text_copy(s->filesystem, volume.filesystem);
    text_copy(s->content, volume.content);
    s->size = volume.size;
    s->formatted = volume.formatted;
    s->behind = volume.behind;
    r = catalogue_snapshot_insert(m->catalogue, s, err);
    if (r == 0)
        r = job_set(job, "layer", intent->layer.id, err);
    if (r == 0 && !intent->reflink)
        r = job_set(job, "source", "", err);
    return r < 0 ? r : job_set(job, "consistency", writers.any ? "crash" : "detached", err);
}

/* The same snapshot is there already, or on its way. -ENOENT: no. */
static int create_existing(struct manager *m, const char *name, struct ticket *ret_ticket)
{
    struct volume_record volume = {0};
    struct snapshot_record s = {0};
    int r = snapshot_find(m, name, &volume, &s, NULL);
    if (r < 0)
        return -ENOENT;
    *ret_ticket = (struct ticket){.existed = true};
    text_copy(ret_ticket->object, s.id);
    if (strcmp(s.state, "creating") == 0)
        job_find_active(m, volume.id, ret_ticket->job);
    return 0;
}

int snapshot_name(const char *name, const struct volume_record *volume, struct snapshot_intent *intent,
                  struct error *err)
{
    struct snapshot_record *s = &intent->snapshot;
    const char *own = strchr(name, '@') ? strchr(name, '@') + 1 : "";
    if (!catalogue_name_valid(own))
        return error_set(err, EINVAL, "'%s' cannot be a snapshot's name: VOLUME@NAME is wanted", name);
    int r = catalogue_id("snap-", s->id);
    if (r < 0)
        return error_sys(err, r, "new snapshot of '%s'", volume->name);
    text_copy_bounded(s->name, sizeof(s->name), own);
    text_copy(s->state, "creating");
    text_copy(s->consistency, "detached");
    s->created = time(NULL);
    return 0;
}

int manager_snapshot_create(struct manager *m, const struct caller *caller, const char *name, bool freeze,
                            struct ticket *ret_ticket, struct error *err)
{
    struct volume_record volume = {0};
    struct snapshot_intent intent = {0};
    CLEANUP_JOB struct job *job = NULL;
    char volume_name[NAME_MAX_BYTES];
    int r = caller_require(caller, CALLER_OPERATOR, err);
    if (r < 0)
        return r;
    (void)snprintf(volume_name, sizeof(volume_name), "%.*s", (int)MIN(strcspn(name, "@"), sizeof(volume_name) - 1),
                   name);
    r = catalogue_volume_find(m->catalogue, volume_name, &volume, err);
    if (r == 0)
        r = snapshot_name(name, &volume, &intent, err);
    if (r < 0)
        return r;
    if (create_existing(m, name, ret_ticket) == 0)
        return 0;
    r = reflink_possible(m, volume.top_layer, &intent.reflink, err);
    if (r == 0 && intent.reflink)
        r = reflink_quick(m, volume.top_layer, &intent.quick, err);
    if (r == 0)
        r = job_create(m, &job_snapshot_create, &volume, "", caller,
                       json_pack("{s:b, s:s, s:s}", "freeze", freeze, "snapshot", intent.snapshot.id, "source",
                                 intent.reflink ? volume.top_layer : ""),
                       &job, err);
    if (r == 0)
        r = job_submit(&job, snapshot_insert, &intent, ret_ticket, err);
    if (r == 0)
        text_copy(ret_ticket->object, intent.snapshot.id);
    return r;
}

/* ---- the steps ----------------------------------------------------------------------------------------------- */

static int job_snapshot(const struct job *job, struct snapshot_record *ret_snapshot, struct error *err)
{
    return catalogue_snapshot_find(job->manager->catalogue, job->record.volume_id, job_get(job, "snapshot"),
                                   ret_snapshot, err);
}

/* Make `top` the volume's top, which freezes or thaws the layer below it. */
int snapshot_change_top(struct job *job, const char *top, const char *other, bool frozen, struct error *err)
{
    struct manager *m = job->manager;
    struct volume_record volume = {0};
    struct layer_record layer = {0};
    int r = catalogue_begin(m->catalogue, err);
    if (r < 0)
        return r;
    r = job_volume(job, &volume, err);
    if (r == 0 && strcmp(volume.top_layer, top) != 0) {
        (void)snprintf(volume.top_layer, sizeof(volume.top_layer), "%s", top);
        r = catalogue_volume_update(m->catalogue, &volume, err);
    }
    if (r == 0)
        r = catalogue_layer_find(m->catalogue, other, &layer, err);
    if (r == 0) {
        layer.frozen = frozen;
        r = catalogue_layer_update(m->catalogue, &layer, err);
    }
    return transaction_end(m, r, err);
}

/* By reflink the snapshot's layer is the new one, and the top stays. */
static bool by_reflink(const struct job *job)
{
    return job_get(job, "source")[0] != '\0';
}

static int step_image(struct job *job, struct error *err)
{
    return by_reflink(job) ? 0 : step_overlay_image(job, err);
}

static int step_record(struct job *job, struct error *err)
{
    struct snapshot_record s = {0};
    if (by_reflink(job))
        return 0;
    int r = job_snapshot(job, &s, err);
    return r < 0 ? r : snapshot_change_top(job, job_get(job, "layer"), s.layer_id, true, err);
}

static int undo_record(struct job *job, struct error *err)
{
    struct snapshot_record s = {0};
    if (by_reflink(job))
        return 0;
    if (job_get(job, "unknown")[0])
        return error_set(err, EINPROGRESS, "it is not known whether the block server has a new top layer");
    int r = job_snapshot(job, &s, err);
    return r < 0 ? r : snapshot_change_top(job, s.layer_id, s.layer_id, false, err);
}

/* The attachment that writes; -ENOENT: none. */
int snapshot_writer(struct job *job, struct attachment_record *ret, struct error *err)
{
    struct attachment_record *list;
    size_t count = 0;
    bool found = false;
    int r = catalogue_attachment_list(job->manager->catalogue, job->record.volume_id, &list, &count, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < count; i++) {
        if (!found && !list[i].snapshot_id[0] && !list[i].read_only && strcmp(list[i].state, "attached") == 0) {
            *ret = list[i];
            found = true;
        } else {
            attachment_record_done(&list[i]);
        }
    }
    free(list);
    return found ? 0 : -ENOENT;
}

int snapshot_open_top(struct job *job, struct layer_record *ret_layer, int *ret_fd, struct error *err)
{
    CLEANUP_POOL struct pool *pool = NULL;
    CLEANUP_CLOSE int fd = -1;
    int r = catalogue_layer_find(job->manager->catalogue, job_get(job, "layer"), ret_layer, err);
    if (r == 0)
        r = manager_pool_open(job->manager, ret_layer->pool_id, &pool, err);
    if (r == 0)
        r = pool->ops->image_open(pool, ret_layer->id, false, &fd, err);
    if (r == 0)
        r = image_lock_take(fd, IMAGE_LOCK_WRITER, job->record.volume_name, err);
    if (r == -EBUSY && fd >= 0) { /* the server has it, from before a crash of ours: nobody else knows this file */
        error_clear(err);
        r = 0;
    }
    if (r == 0)
        *ret_fd = steal_fd(&fd);
    return r;
}

static int tell_server(struct job *job, const struct attachment_record *a, struct error *err)
{
    struct layer_record layer = {0};
    struct blk_client *client;
    CLEANUP_CLOSE int fd = -1;
    int r = server_connect(job->manager, a->id, &client, err);
    if (r == -ENOENT) { /* it has ended: what it wrote lies in the layer below the new one */
        error_clear(err);
        return 0;
    }
    if (r == 0)
        r = snapshot_open_top(job, &layer, &fd, err);
    if (r < 0)
        return r;
    struct blk_layer blk_layer = {.format = layer.format, .fd = fd};
    r = blk_snapshot(client, layer.id, &blk_layer, err);
    if (snapshot_unknown(r))
        (void)job_set(job, "unknown", "yes", NULL);
    return r < 0 ? r : job_set_number(job, "pause_us", blk_snapshot_pause_us(client), err);
}

/* A loop device's writes are held by the file system itself, which locks the file for a reflink. */
static int tell_reflink(struct job *job, const struct attachment_record *a, struct error *err)
{
    struct blk_client *client;
    CLEANUP_POOL struct pool *pool = NULL;
    CLEANUP_CLOSE int fd = -1;
    struct layer_record layer = {0};
    int r = strcmp(a->via, "loop") == 0 ? -ENOENT : server_connect(job->manager, a->id, &client, err);
    if (r == -ENOENT) { /* or it has ended: all it wrote is in the file */
        error_clear(err);
        return reflink_copy(job, false, err);
    }
    if (r == 0)
        r = catalogue_layer_find(job->manager->catalogue, job_get(job, "layer"), &layer, err);
    if (r == 0)
        r = manager_pool_open(job->manager, layer.pool_id, &pool, err);
    if (r == 0)
        r = pool->ops->image_open(pool, layer.id, false, &fd, err);
    if (r == 0)
        r = blk_reflink(client, layer.id, fd, err);
    return r < 0 ? r : job_set_number(job, "pause_us", blk_snapshot_pause_us(client), err);
}

static int tell(struct job *job, const struct attachment_record *a, struct error *err)
{
    return by_reflink(job) ? tell_reflink(job, a, err) : tell_server(job, a, err);
}

/* Where the attachment's file system is mounted; path NULL: it is not. The caller frees path. */
void snapshot_find_mount(const struct attachment_record *a, struct snapshot_mount *ret)
{
    CLEANUP_JSON json_t *facts = json_loads(a->data, 0, NULL);
    const char *path = json_string_value(json_object_get(facts, "canonical"));
    const char *device = json_string_value(json_object_get(facts, "device"));
    char label[LOOP_LABEL_MAX];
    struct stat st;
    CLEANUP_CLOSE int fd = -1;
    *ret = (struct snapshot_mount){0};
    (void)snprintf(label, sizeof(label), "platter/%s", a->id);
    if (path && device && loop_open(device, label, 0, &fd, NULL) == 0 && fstat(fd, &st) == 0)
        *ret = (struct snapshot_mount){.path = strdup(path), .rdev = st.st_rdev};
}

/* A crash in between leaves it frozen until this step runs again, which is the first thing after a restart. */
static int tell_frozen(struct job *job, const struct attachment_record *a, struct error *err)
{
    struct snapshot_mount mounted;
    struct error thaw = ERROR_INIT;
    snapshot_find_mount(a, &mounted);
    CLEANUP_FREE char *path = mounted.path;
    if (!path)
        return error_set(err, ENOENT, "the mount of attachment '%s' is gone: nothing to freeze", a->id);
    int r = freeze_begin(path, mounted.rdev, err);
    crash_point(job->kind->name, "switch", ":frozen");
    if (r == 0)
        r = tell(job, a, err);
    if (freeze_end(path, mounted.rdev, &thaw) < 0)
        log_error("volume '%s': %s", job->record.volume_name, thaw.message);
    return r < 0 ? r : job_set(job, "consistency", "filesystem", err);
}

static int step_switch(struct job *job, struct error *err)
{
    struct attachment_record a = {0};
    int r = snapshot_writer(job, &a, err);
    if (r == -ENOENT)
        return by_reflink(job) ? reflink_copy(job, true, err) : 0;
    if (r < 0)
        return r;
    r = json_is_true(json_object_get(job->data, "freeze")) ? tell_frozen(job, &a, err) : tell(job, &a, err);
    attachment_record_done(&a);
    return r;
}

/* Room for one more layer. Only a volume without a writer has come here with a chain that is too long. */
int snapshot_room(struct job *job, struct error *err)
{
    struct volume_record volume = {0};
    int r = job_volume(job, &volume, err);
    if (r < 0 || !flatten_wanted(job->manager, &volume, BLK_LAYERS_MAX))
        return r;
    return flatten(job, err);
}

static const struct job_step create_steps[] = {
    {.name = "room", .run = snapshot_room}, {.name = "file", .run = step_overlay_file, .undo = undo_overlay_file},
    {.name = "image", .run = step_image},   {.name = "record", .run = step_record, .undo = undo_record},
    {.name = "switch", .run = step_switch}, {.name = "sidecar", .run = step_sidecar, .final = true},
};

static json_t *snapshot_event(const struct job *job, const struct snapshot_record *s)
{
    return json_pack("{s:s, s:s, s:s, s:s}", "name", s->name, "volume", job->record.volume_name, "volume_id",
                     s->volume_id, "consistency", s->consistency);
}

static int finish_create(struct job *job, struct error *err)
{
    struct snapshot_record s = {0};
    int r = job_snapshot(job, &s, err);
    if (r < 0)
        return r;
    text_copy(s.state, "available");
    text_copy_bounded(s.consistency, sizeof(s.consistency), job_get(job, "consistency"));
    r = catalogue_snapshot_update(job->manager->catalogue, &s, err);
    if (r == 0)
        event_record(job->manager, "snapshot.created", s.id, snapshot_event(job, &s));
    return r;
}

static int abandon_create(struct job *job, const struct error *cause, bool undone, struct error *err)
{
    struct snapshot_record s = {0};
    (void)cause;
    int r = job_snapshot(job, &s, err);
    if (r < 0)
        return r;
    if (!undone) {
        text_copy(s.state, "failed");
        event_record(job->manager, "snapshot.failed", s.id, snapshot_event(job, &s));
        return catalogue_snapshot_update(job->manager->catalogue, &s, err);
    }
    r = catalogue_snapshot_delete(job->manager->catalogue, s.id, err);
    return r < 0 ? r : catalogue_layer_delete(job->manager->catalogue, job_get(job, "layer"), err);
}

const struct job_kind job_snapshot_create = {
    .name = "snapshot-create",
    .steps = create_steps,
    .step_count = ARRAY_SIZE(create_steps),
    .finish = finish_create,
    .abandon = abandon_create,
};
