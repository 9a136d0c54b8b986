// SPDX-License-Identifier: Apache-2.0
/*
 * snapshot-group-create: snapshots of several volumes at one point in time, all or none.
 *
 * The steps are those of snapshot-create, each done for all members before the next; snapshots become available in the last
 * transaction, together. The job has all its volumes to itself (job.h, "volumes"), so a detached one stays detached.
 *
 * The moment cannot be had twice: when platterd dies within it, some servers have their new tops and others do not, and
 * holding them again would be another moment. Then, as after any other failure, the job is undone: a new top that a
 * server has stays as a layer, which is merged as those of deleted snapshots are; every other one goes.
 */
#include "provisioner/volume/group.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/log.h"
#include "common/text.h"

/* ---- members ------------------------------------------------------------------------------------------------- */

size_t group_count(const struct job *job)
{
    return json_array_size(json_object_get(job->data, "members"));
}

struct job group_member_job(struct job *job, size_t index)
{
    struct job member = {.manager = job->manager,
                         .kind = job->kind,
                         .data = json_array_get(json_object_get(job->data, "members"), index),
                         .cancel_fd = job->cancel_fd};
    text_copy(member.record.id, job->record.id);
    text_copy_bounded(member.record.volume_id, ID_MAX, job_get(&member, "volume_id"));
    text_copy_bounded(member.record.volume_name, sizeof(member.record.volume_name), job_get(&member, "volume"));
    return member;
}

int group_member_snapshot(const struct job *member, struct snapshot_record *ret_snapshot, struct error *err)
{
    return catalogue_snapshot_by_id(member->manager->catalogue, job_get(member, "snapshot"), ret_snapshot, err);
}

/* ---- the request --------------------------------------------------------------------------------------------- */

struct group_intent {
    size_t count;
    bool freeze;
    char id[ID_MAX];
    struct volume_record volumes[SNAPSHOT_GROUP_MAX];
    struct snapshot_intent members[SNAPSHOT_GROUP_MAX];
};

static int find_volume(struct manager *m, const char *name, struct volume_record *ret_volume, struct error *err)
{
    char volume[NAME_MAX_BYTES];
    (void)snprintf(volume, sizeof(volume), "%.*s", (int)MIN(strcspn(name, "@"), sizeof(volume) - 1), name);
    return catalogue_volume_find(m->catalogue, volume, ret_volume, err);
}

static int fill_intent(struct manager *m, const char *const *names, struct group_intent *intent, struct error *err)
{
    int r = catalogue_id("grp-", intent->id);
    if (r < 0)
        return error_sys(err, r, "new group of snapshots");
    for (size_t i = 0; r == 0 && i < intent->count; i++) {
        struct volume_record *volume = &intent->volumes[i];
        r = find_volume(m, names[i], volume, err);
        if (r == 0)
            r = snapshot_name(names[i], volume, &intent->members[i], err);
        if (r == 0)
            text_copy(intent->members[i].snapshot.group_id, intent->id);
        for (size_t k = 0; r == 0 && k < i; k++) {
            if (strcmp(intent->volumes[k].id, volume->id) == 0)
                r = error_set(err, EINVAL, "volume '%s' is named twice", volume->name);
        }
    }
    return r;
}

/* Are these snapshots there already? 1: all, as one group; the ticket is filled. 0: none. -EEXIST: some, or otherwise. */
static int find_existing(struct manager *m, const char *const *names, size_t count, struct ticket *ret_ticket,
                         struct error *err)
{
    CLEANUP_FREE struct snapshot_record *group = NULL;
    struct volume_record volume = {0};
    char id[ID_MAX] = "";
    const char *taken = NULL;
    bool creating = false;
    size_t found = 0, members = 0;
    for (size_t i = 0; i < count; i++) {
        struct snapshot_record s = {0};
        if (snapshot_find(m, names[i], &volume, &s, NULL) < 0)
            continue;
        taken = names[i];
        found += found == 0 || strcmp(id, s.group_id) == 0;
        text_copy(id, s.group_id);
        creating = creating || strcmp(s.state, "creating") == 0;
    }
    if (!taken)
        return 0;
    if (found == count && id[0] && catalogue_snapshot_group(m->catalogue, id, &group, &members, err) == 0 &&
        members == count) {
        *ret_ticket = (struct ticket){.existed = true};
        text_copy(ret_ticket->object, id);
        if (creating)
            job_find_active(m, volume.id, ret_ticket->job);
        return 1;
    }
    (void)error_set(err, EEXIST, "there is a snapshot '%s' already", taken);
    return error_hint(err, "platter snapshot show %s", taken);
}

static int group_job(struct manager *m, const struct caller *caller, const struct group_intent *intent,
                     struct job **ret_job, struct error *err)
{
    json_t *members = json_array(), *volumes = json_array();
    for (size_t i = 0; i < intent->count; i++) {
        const struct volume_record *v = &intent->volumes[i];
        (void)json_array_append_new(volumes, json_string(v->id));
        (void)json_array_append_new(members, json_pack("{s:s, s:s, s:s, s:b}", "volume_id", v->id, "volume", v->name,
                                                       "snapshot", intent->members[i].snapshot.id, "freeze", 0));
    }
    json_t *data = json_pack("{s:s, s:b, s:o, s:o}", "group", intent->id, "freeze", intent->freeze, "members", members,
                             "volumes", volumes);
    if (json_array_size(json_object_get(data, "members")) != intent->count ||
        json_array_size(json_object_get(data, "volumes")) != intent->count) {
        json_decref(data);
        return error_sys(err, ENOMEM, "new job");
    }
    return job_create(m, &job_snapshot_group_create, &intent->volumes[0], "", caller, data, ret_job, err);
}

/* Who writes, and whether it is a mount that is to be held still. */
static int note_writer(struct job *member, bool freeze, struct error *err)
{
    struct attachment_record a = {0};
    int r = snapshot_writer(member, &a, err);
    bool mounted = r == 0 && strcmp(a.kind, "mount") == 0;
    if (r == 0)
        r = job_set(member, "writer", a.id, err);
    attachment_record_done(&a);
    if (r == -ENOENT)
        return 0;
    if (r == 0 && freeze && mounted && json_object_set_new(member->data, "freeze", json_true()) < 0)
        r = error_sys(err, ENOMEM, "new job");
    return r;
}

static int group_insert(struct job *job, void *arg, struct error *err)
{
    struct group_intent *intent = arg;
    size_t frozen = 0;
    int r = 0;
    for (size_t i = 0; r == 0 && i < intent->count; i++) {
        struct job member = group_member_job(job, i);
        r = note_writer(&member, intent->freeze, err);
        if (r == 0)
            r = snapshot_insert(&member, &intent->members[i], err);
        frozen += json_is_true(json_object_get(member.data, "freeze"));
    }
    if (r == 0 && intent->freeze && frozen == 0)
        r = error_set(err, EINVAL, "none of the volumes is mounted by platter: there is no file system to freeze");
    return r;
}

int manager_snapshot_group_create(struct manager *m, const struct caller *caller, const char *const *names,
                                  size_t count, bool freeze, struct ticket *ret_ticket, struct error *err)
{
    CLEANUP_FREE struct group_intent *intent = NULL;
    CLEANUP_JOB struct job *job = NULL;
    int r = caller_require(caller, CALLER_OPERATOR, err);
    if (r == 0 && (count == 0 || count > SNAPSHOT_GROUP_MAX))
        r = error_set(err, EINVAL, "a group has 1 to %d snapshots", SNAPSHOT_GROUP_MAX);
    if (r < 0)
        return r;
    intent = calloc(1, sizeof(*intent));
    if (!intent)
        return error_sys(err, ENOMEM, "new group of snapshots");
    intent->count = count;
    intent->freeze = freeze;
    r = fill_intent(m, names, intent, err);
    if (r == 0)
        r = find_existing(m, names, count, ret_ticket, err);
    if (r != 0)
        return r < 0 ? r : 0;
    r = group_job(m, caller, intent, &job, err);
    if (r == 0)
        r = job_submit(&job, group_insert, intent, ret_ticket, err);
    if (r == 0)
        text_copy(ret_ticket->object, intent->id);
    return r;
}

/* ---- the steps ----------------------------------------------------------------------------------------------- */

static int for_each(struct job *job, int (*step)(struct job *member, struct error *err), struct error *err)
{
    int r = 0;
    for (size_t i = 0; r == 0 && i < group_count(job); i++) {
        struct job member = group_member_job(job, i);
        r = step(&member, err);
    }
    return r;
}

static int step_room(struct job *job, struct error *err)
{
    return for_each(job, snapshot_room, err);
}

static int step_file(struct job *job, struct error *err)
{
    return for_each(job, step_overlay_file, err);
}

static int undo_file_of(struct job *member, struct error *err)
{
    return job_get(member, "kept")[0] || job_get(member, "unknown")[0] ? 0 : undo_overlay_file(member, err);
}

static int undo_file(struct job *job, struct error *err)
{
    return for_each(job, undo_file_of, err);
}

static int step_image(struct job *job, struct error *err)
{
    return for_each(job, step_overlay_image, err);
}

static int record_of(struct job *member, struct error *err)
{
    struct snapshot_record s = {0};
    int r = group_member_snapshot(member, &s, err);
    return r < 0 ? r : snapshot_change_top(member, job_get(member, "layer"), s.layer_id, true, err);
}

static int step_record(struct job *job, struct error *err)
{
    return for_each(job, record_of, err);
}

/* All are tried. */
static int undo_record(struct job *job, struct error *err)
{
    int result = 0;
    for (size_t i = 0; i < group_count(job); i++) {
        struct job member = group_member_job(job, i);
        struct error local = ERROR_INIT;
        int r = group_settle(job, &member, &local);
        if (r == 0)
            continue;
        (void)job_set(&member, "unknown", "yes", NULL);
        result = result ? result : error_set(err, -r, "volume '%s': %s", member.record.volume_name, local.message);
    }
    return result;
}

static int step_sidecars(struct job *job, struct error *err)
{
    return for_each(job, step_sidecar, err);
}

static const struct job_step group_steps[] = {
    {.name = "room", .run = step_room},
    {.name = "file", .run = step_file, .undo = undo_file},
    {.name = "image", .run = step_image},
    {.name = "record", .run = step_record, .undo = undo_record},
    {.name = "switch", .run = group_switch, .undo = group_thaw},
    {.name = "sidecar", .run = step_sidecars, .final = true},
};

/* ---- the end ------------------------------------------------------------------------------------------------- */

static json_t *snapshot_event(const struct job *member, const struct snapshot_record *s)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:s}", "name", s->name, "volume", member->record.volume_name, "volume_id",
                     s->volume_id, "consistency", s->consistency, "group", s->group_id);
}

static int finish_of(struct job *member, struct error *err)
{
    struct snapshot_record s = {0};
    int r = group_member_snapshot(member, &s, err);
    if (r < 0)
        return r;
    text_copy(s.state, "available");
    text_copy_bounded(s.consistency, sizeof(s.consistency), job_get(member, "consistency"));
    r = catalogue_snapshot_update(member->manager->catalogue, &s, err);
    if (r == 0)
        event_record(member->manager, "snapshot.created", s.id, snapshot_event(member, &s));
    return r;
}

static int finish_group(struct job *job, struct error *err)
{
    return for_each(job, finish_of, err);
}

/* Its snapshot stays as one that failed, with the layers as they are. */
static int fail_of(struct job *member, struct error *err)
{
    struct snapshot_record s = {0};
    int r = group_member_snapshot(member, &s, err);
    if (r < 0)
        return r;
    text_copy(s.state, "failed");
    s.group_id[0] = 0;
    event_record(member->manager, "snapshot.failed", s.id, snapshot_event(member, &s));
    return catalogue_snapshot_update(member->manager->catalogue, &s, err);
}

static int abandon_group(struct job *job, const struct error *cause, bool undone, struct error *err)
{
    struct catalogue *catalogue = job->manager->catalogue;
    (void)cause;
    int r = 0;
    for (size_t i = 0; r == 0 && i < group_count(job); i++) {
        struct job member = group_member_job(job, i);
        bool kept = job_get(&member, "kept")[0], back = job_get(&member, "back")[0];
        if (job_get(&member, "unknown")[0] || (!undone && !kept && !back)) {
            r = fail_of(&member, err);
            continue;
        }
        r = catalogue_snapshot_delete(catalogue, job_get(&member, "snapshot"), err);
        if (r == 0 && undone && !kept) /* else a merge removes what nothing needs */
            r = catalogue_layer_delete(catalogue, job_get(&member, "layer"), err);
    }
    return r;
}

const struct job_kind job_snapshot_group_create = {
    .name = "snapshot-group-create",
    .steps = group_steps,
    .step_count = ARRAY_SIZE(group_steps),
    .finish = finish_group,
    .abandon = abandon_group,
};
