// SPDX-License-Identifier: Apache-2.0
/*
 * Snapshots as the API shows them; snapshot-delete: the record goes in one transaction, the layer's file then, or later
 * by a merge if something stands on it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/text.h"
#include "provisioner/volume/reflink.h"
#include "provisioner/volume/snapshot.h"

#define LIST_LIMIT 1000

/* ---- describing ---------------------------------------------------------------------------------------------- */

static json_t *describe_snapshot(struct manager *m, const struct volume_record *volume, const struct snapshot_record *s)
{
    CLEANUP_POOL struct pool *pool = NULL;
    char reference[2 * NAME_MAX_BYTES];
    uint64_t used = 0;
    (void)snprintf(reference, sizeof(reference), "%s@%s", volume->name, s->name);
    json_t *json = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:s, s:s, s:b, s:I}", "id", s->id, "name",
                             reference, "snapshot", s->name, "volume", volume->name, "volume_id", volume->id, "state",
                             s->state, "layer", s->layer_id, "size", (json_int_t)s->size, "consistency", s->consistency,
                             "filesystem", s->filesystem, "formatted", s->formatted, "created", (json_int_t)s->created);
    if (json && manager_pool_open(m, volume->pool_id, &pool, NULL) == 0 &&
        pool->ops->image_used(pool, s->layer_id, &used, NULL) == 0)
        (void)json_object_set_new(json, "used", json_integer((json_int_t)used));
    if (json && s->origin[0])
        (void)json_object_set_new(json, "origin", json_string(s->origin));
    if (json && s->group_id[0])
        (void)json_object_set_new(json, "group", json_string(s->group_id));
    return json;
}

int manager_snapshot_get(struct manager *m, const char *name, json_t **ret_snapshot, struct error *err)
{
    struct volume_record volume = {0};
    struct snapshot_record s = {0};
    int r = snapshot_find(m, name, &volume, &s, err);
    if (r == 0)
        *ret_snapshot = describe_snapshot(m, &volume, &s);
    return r;
}

int manager_snapshot_get_id(struct manager *m, const char *id, json_t **ret_snapshot, struct error *err)
{
    struct volume_record volume = {0};
    struct snapshot_record s = {0};
    int r = catalogue_snapshot_by_id(m->catalogue, id, &s, err);
    if (r == 0)
        r = catalogue_volume_find(m->catalogue, s.volume_id, &volume, err);
    if (r == 0)
        *ret_snapshot = describe_snapshot(m, &volume, &s);
    return r;
}

int manager_snapshot_group_get(struct manager *m, const char *group_id, json_t **ret_group, struct error *err)
{
    CLEANUP_FREE struct snapshot_record *records = NULL;
    struct volume_record volume = {0};
    size_t count = 0;
    int r = catalogue_snapshot_group(m->catalogue, group_id, &records, &count, err);
    if (r == 0 && count == 0)
        r = error_set(err, ENOENT, "there is no snapshot of a group '%s'", group_id);
    if (r < 0)
        return r;
    json_t *snapshots = json_array();
    for (size_t i = 0; i < count; i++) {
        if (catalogue_volume_find(m->catalogue, records[i].volume_id, &volume, NULL) == 0)
            (void)json_array_append_new(snapshots, describe_snapshot(m, &volume, &records[i]));
    }
    *ret_group = json_pack("{s:s, s:o}", "group", group_id, "snapshots", snapshots);
    return *ret_group ? 0 : error_sys(err, ENOMEM, "group '%s'", group_id);
}

int manager_snapshot_list(struct manager *m, const char *volume, const char *after, unsigned limit,
                          json_t **ret_snapshots, struct error *err)
{
    CLEANUP_FREE struct snapshot_record *records = NULL;
    struct volume_record of = {0};
    size_t count = 0;
    int r = volume ? catalogue_volume_find(m->catalogue, volume, &of, err) : 0;
    if (r == 0)
        r = catalogue_snapshot_list(m->catalogue, volume ? of.id : NULL, after,
                                    limit && limit < LIST_LIMIT ? limit : LIST_LIMIT, &records, &count, err);
    if (r < 0)
        return r;
    json_t *snapshots = json_array();
    for (size_t i = 0; i < count; i++) {
        if (!volume && catalogue_volume_find(m->catalogue, records[i].volume_id, &of, NULL) < 0)
            continue;
        (void)json_array_append_new(snapshots, describe_snapshot(m, &of, &records[i]));
    }
    *ret_snapshots = snapshots;
    return 0;
}

/* ---- deleting ------------------------------------------------------------------------------------------------ */

static int check_unattached(struct manager *m, const struct volume_record *volume, const struct snapshot_record *s,
                            struct error *err)
{
    struct attachment_record *list;
    size_t count = 0;
    int r = catalogue_attachment_list(m->catalogue, volume->id, &list, &count, err);
    for (size_t i = 0; r == 0 && i < count; i++) {
        if (strcmp(list[i].snapshot_id, s->id) != 0)
            continue;
        (void)error_set(err, EBUSY, "snapshot '%s@%s' is in use by attachment %s", volume->name, s->name, list[i].id);
        (void)error_holder(err, list[i].id);
        (void)error_hint(err, "platter detach %s", list[i].id);
        r = error_code(err, "snapshot-in-use");
    }
    if (count)
        attachment_records_free(list, count);
    return r;
}

static int delete_insert(struct job *job, void *arg, struct error *err)
{
    struct manager *m = job->manager;
    struct snapshot_record *s = arg;
    struct volume_record volume = {0};
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = check_unattached(m, &volume, s, err);
    if (r == 0)
        r = volume_check_ready(m, &volume, err);
    if (r == 0)
        r = job_set(job, "layer", s->layer_id, err);
    return r < 0 ? r : catalogue_snapshot_delete(m->catalogue, s->id, err);
}

int manager_snapshot_delete(struct manager *m, const struct caller *caller, const char *name, struct ticket *ret_ticket,
                            struct error *err)
{
    struct volume_record volume = {0};
    struct snapshot_record s = {0};
    CLEANUP_JOB struct job *job = NULL;
    int r = caller_require(caller, CALLER_OPERATOR, err);
    if (r == 0)
        r = snapshot_find(m, name, &volume, &s, err);
    if (r == 0)
        r = job_create(m, &job_snapshot_delete, &volume, "", caller,
                       json_pack("{s:s, s:s}", "snapshot", s.id, "name", s.name), &job, err);
    return r < 0 ? r : job_submit(&job, delete_insert, &s, ret_ticket, err);
}

/* A layer that nothing stands on goes at once, also while the volume is attached. */
static int step_drop(struct job *job, struct error *err)
{
    return job_get(job, "layer")[0] ? layer_drop_unneeded(job, job_get(job, "layer"), err) : 0;
}

static const struct job_step delete_steps[] = {
    {.name = "layer", .run = step_drop, .final = true},
    {.name = "sidecar", .run = step_sidecar, .final = true},
};

static int finish_delete(struct job *job, struct error *err)
{
    CLEANUP_JSON json_t *result =
        json_pack("{s:s, s:s, s:s, s:s}", "id", job_get(job, "snapshot"), "name", job_get(job, "name"), "volume",
                  job->record.volume_name, "state", "deleted");
    (void)err;
    free(job->record.result);
    job->record.result = json_text(result);
    event_record(job->manager, "snapshot.deleted", job_get(job, "snapshot"), json_incref(result));
    return 0;
}

static int abandon_delete(struct job *job, const struct error *cause, bool undone, struct error *err)
{
    (void)job, (void)cause, (void)undone, (void)err;
    return 0; /* the record is gone; the sidecar is written with the next change */
}

const struct job_kind job_snapshot_delete = {
    .name = "snapshot-delete",
    .steps = delete_steps,
    .step_count = ARRAY_SIZE(delete_steps),
    .finish = finish_delete,
    .abandon = abandon_delete,
};
