// SPDX-License-Identifier: Apache-2.0
/* A job's own data, its steps forward and backward, and its end. The queue and its threads are in scheduler.c. */
#include "provisioner/volume/job.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/log.h"
#include "common/text.h"
#include "provisioner/volume/run.h"

#define PROGRESS_INTERVAL_MS 500

static const struct job_kind *const kinds[] = {
    &job_volume_create, &job_volume_import,         &job_volume_export,      &job_volume_resize,  &job_volume_shrink,
    &job_volume_delete, &job_volume_check,          &job_attach_device,      &job_attach_mount,   &job_attach_vm,
    &job_detach,        &job_snapshot_create,       &job_snapshot_delete,    &job_volume_clone,   &job_volume_restore,
    &job_volume_merge,  &job_snapshot_group_create, &job_volume_import_onto, &job_volume_compact,
};

const struct job_kind *job_kind_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        if (strcmp(kinds[i]->name, name) == 0)
            return kinds[i];
    }
    return NULL;
}

/* ---- crash points ------------------------------------------------------------------------------------------ */

static char crash_at[256]; /* points, each with a comma before and behind it */

void crash_point_init(void)
{
    const char *at = getenv("PLATTER_CRASH_AT");
    if (at && at[0])
        (void)snprintf(crash_at, sizeof(crash_at), ",%s,", at);
}

bool crash_point_is(const char *kind, const char *step, const char *suffix)
{
    if (!crash_at[0])
        return false;
    char point[96];
    (void)snprintf(point, sizeof(point), ",%s.%s%s,", kind, step, suffix);
    return strstr(crash_at, point) != NULL;
}

void crash_point(const char *kind, const char *step, const char *suffix)
{
    if (crash_point_is(kind, step, suffix))
        (void)kill(getpid(), SIGKILL);
}

/* ---- creating and freeing ---------------------------------------------------------------------------------- */

static json_t *caller_to_json(const struct caller *caller)
{
    json_t *groups = json_array();
    for (size_t i = 0; i < caller->group_count && i < CALLER_GROUPS_MAX; i++)
        (void)json_array_append_new(groups, json_integer(caller->groups[i]));
    return json_pack("{s:I, s:I, s:I, s:o}", "uid", (json_int_t)caller->uid, "gid", (json_int_t)caller->gid, "pid",
                     (json_int_t)caller->pid, "groups", groups);
}

void job_rights(const struct job *job, struct rights *ret_rights)
{
    const json_t *caller = json_object_get(job->data, "caller"), *groups = json_object_get(caller, "groups");
    struct rights rights = {.uid = (uid_t)json_integer_value(json_object_get(caller, "uid")),
                            .gid = (gid_t)json_integer_value(json_object_get(caller, "gid"))};
    for (; rights.group_count < json_array_size(groups) && rights.group_count < RIGHTS_GROUPS_MAX; rights.group_count++)
        rights.groups[rights.group_count] = (gid_t)json_integer_value(json_array_get(groups, rights.group_count));
    *ret_rights = rights;
}

static int job_allocate(struct manager *manager, const struct job_kind *kind, struct job **ret_job)
{
    struct job *job = calloc(1, sizeof(*job));
    if (!job)
        return -ENOMEM;
    job->manager = manager;
    job->kind = kind;
    job->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (job->cancel_fd < 0) {
        int r = -errno;
        job_free(job);
        return r;
    }
    *ret_job = job;
    return 0;
}

static int job_take_volumes(struct job *job)
{
    const json_t *ids = json_object_get(job->data, "volumes");
    size_t count = json_array_size(ids);
    if (count == 0)
        return 0;
    job->volumes = calloc(count, sizeof(*job->volumes));
    if (!job->volumes)
        return -ENOMEM;
    for (; job->volume_count < count; job->volume_count++) {
        const char *id = json_string_value(json_array_get(ids, job->volume_count));
        (void)snprintf(job->volumes[job->volume_count], ID_MAX, "%s", id ? id : "");
    }
    return 0;
}

bool job_concerns(const struct job *job, const char *volume_id)
{
    bool concerns = strcmp(job->record.volume_id, volume_id) == 0;
    for (size_t i = 0; !concerns && i < job->volume_count; i++)
        concerns = strcmp(job->volumes[i], volume_id) == 0;
    return concerns;
}

bool job_overlaps(const struct job *job, const struct job *other)
{
    bool overlaps = job_concerns(other, job->record.volume_id);
    for (size_t i = 0; !overlaps && i < job->volume_count; i++)
        overlaps = job_concerns(other, job->volumes[i]);
    return overlaps;
}

int job_create(struct manager *manager, const struct job_kind *kind, const struct volume_record *volume,
               const char *attachment_id, const struct caller *caller, json_t *data, struct job **ret_job,
               struct error *err)
{
    CLEANUP_JSON json_t *owned = data;
    CLEANUP_JOB struct job *job = NULL;
    if (!owned || json_object_set_new(owned, "caller", caller_to_json(caller)) < 0)
        return error_sys(err, ENOMEM, "new job");
    int r = job_allocate(manager, kind, &job);
    if (r == 0)
        r = catalogue_id("job-", job->record.id);
    if (r < 0)
        return error_sys(err, r, "new job");
    text_copy(job->record.kind, kind->name);
    text_copy(job->record.state, "queued");
    text_copy(job->record.volume_id, volume->id);
    text_copy(job->record.volume_name, volume->name);
    (void)snprintf(job->record.attachment_id, ID_MAX, "%s", attachment_id);
    job->record.created = time(NULL);
    job->data = steal_ptr(&owned);
    if (job_take_volumes(job) < 0)
        return error_sys(err, ENOMEM, "new job");
    *ret_job = steal_ptr(&job);
    return 0;
}

struct job *job_free(struct job *job)
{
    if (job) {
        close_fd(&job->cancel_fd);
        json_decref(job->data);
        free(job->volumes);
        job_record_done(&job->record);
        free(job);
    }
    return NULL;
}

void job_free_cleanup(struct job **job)
{
    job_free(*job);
}

int job_resume(struct manager *manager, struct job_record *record, struct error *err)
{
    const struct job_kind *kind = job_kind_find(record->kind);
    json_error_t where;
    CLEANUP_JSON json_t *data = json_loads(record->data ? record->data : "", 0, &where);
    if (!kind || !json_is_object(data))
        return error_set(err, EBADMSG, "job '%s' of kind '%s' cannot be understood", record->id, record->kind);
    struct job *job;
    int r = job_allocate(manager, kind, &job);
    if (r < 0)
        return error_sys(err, r, "resume job '%s'", record->id);
    job->record = *record;
    *record = (struct job_record){0};
    job->data = steal_ptr(&data);
    if (job_take_volumes(job) < 0) {
        r = error_sys(err, ENOMEM, "resume job '%s'", job->record.id);
        job_free(job);
        return r;
    }
    job_start(job, NULL);
    return 0;
}

/* ---- what steps remember ----------------------------------------------------------------------------------- */

const char *job_get(const struct job *job, const char *key)
{
    const char *value = json_string_value(json_object_get(job->data, key));
    return value ? value : "";
}

uint64_t job_get_number(const struct job *job, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(job->data, key));
}

int job_set(struct job *job, const char *key, const char *value, struct error *err)
{
    return json_object_set_new(job->data, key, json_string(value)) < 0 ? error_sys(err, ENOMEM, "job") : 0;
}

int job_set_number(struct job *job, const char *key, uint64_t value, struct error *err)
{
    return json_object_set_new(job->data, key, json_integer((json_int_t)value)) < 0 ? error_sys(err, ENOMEM, "job") : 0;
}

static int job_write(struct job *job, int (*write_fn)(struct catalogue *, const struct job_record *, struct error *),
                     struct error *err)
{
    free(job->record.data);
    job->record.data = json_text(job->data);
    if (!job->record.data)
        return error_sys(err, ENOMEM, "record job");
    return write_fn(job->manager->catalogue, &job->record, err);
}

int job_insert(struct job *job, struct error *err)
{
    return job_write(job, catalogue_job_insert, err);
}

int job_save(struct job *job, struct error *err)
{
    return job_write(job, catalogue_job_step, err);
}

static void job_progress(void *context, uint64_t done, uint64_t total)
{
    struct job *job = context;
    job->record.done = done;
    job->record.total = total;
    int64_t now = manager_now_ms();
    if (now - job->progress_written < PROGRESS_INTERVAL_MS && done < total)
        return;
    job->progress_written = now;
    (void)catalogue_job_progress(job->manager->catalogue, job->record.id, done, total, NULL); /* only for eyes */
}

struct blk_worker job_worker(struct job *job)
{
    return (struct blk_worker){.binary = job->manager->blk_program,
                               .has_cancel = true,
                               .cancel_fd = job->cancel_fd,
                               .progress = job_progress,
                               .context = job};
}

/* ---- running ----------------------------------------------------------------------------------------------- */

static int job_record_step(struct job *job, const char *state, const char *step, struct error *err)
{
    (void)snprintf(job->record.state, WORD_MAX, "%s", state);
    (void)snprintf(job->record.step, WORD_MAX, "%s", step);
    return job_save(job, err);
}

static size_t job_step_index(const struct job *job)
{
    for (size_t i = 0; i < job->kind->step_count; i++) {
        if (strcmp(job->kind->steps[i].name, job->record.step) == 0)
            return i;
    }
    return 0;
}

/* Forward from the recorded step. On failure *ret_index is the step that failed. */
static int job_forward(struct job *job, size_t *ret_index, struct error *err)
{
    const struct job_kind *kind = job->kind;
    for (size_t i = job_step_index(job); i < kind->step_count; i++) {
        const struct job_step *step = &kind->steps[i];
        *ret_index = i;
        if (atomic_load(&job->cancelled) && !step->final)
            return error_set(err, ECANCELED, "cancelled before the step '%s'", step->name);
        int r = job_record_step(job, "running", step->name, err);
        if (r < 0)
            return r;
        crash_point(kind->name, step->name, "");
        r = step->run(job, err);
        if (r < 0)
            return r;
        if (crash_point_is(kind->name, step->name, ":fail"))
            return error_set(err, EIO, "the step '%s' was made to fail", step->name);
        crash_point(kind->name, step->name, ":after");
    }
    return 0;
}

/* Back from step `index` to the first. False when something could not be undone; the rest is tried all the same. */
static bool job_backward(struct job *job, size_t index)
{
    const struct job_kind *kind = job->kind;
    bool undone = !kind->steps[index].final;
    if (!undone)
        return false;
    for (size_t i = index + 1; i-- > 0;) {
        const struct job_step *step = &kind->steps[i];
        struct error local = ERROR_INIT;
        if (job_record_step(job, "undoing", step->name, &local) < 0)
            log_warning("job %s: %s", job->record.id, local.message);
        crash_point(kind->name, step->name, ":undo");
        if (step->undo && step->undo(job, &local) < 0) {
            log_error("job %s: undo %s.%s: %s", job->record.id, kind->name, step->name, local.message);
            undone = false;
        }
    }
    return undone;
}

static json_t *job_event_data(const struct job *job)
{
    return json_pack("{s:s, s:s, s:s, s:s}", "kind", job->record.kind, "volume", job->record.volume_name, "volume_id",
                     job->record.volume_id, "state", job->record.state);
}

/* The last transaction. */
static int job_close(struct job *job, const struct error *cause, bool undone, struct error *err)
{
    struct catalogue *catalogue = job->manager->catalogue;
    if (cause) {
        CLEANUP_JSON json_t *json = error_to_json(cause);
        free(job->record.error);
        job->record.error = json_text(json);
    }
    text_copy(job->record.state, !cause ? "succeeded" : cause->errnum == ECANCELED ? "cancelled" : "failed");
    job->record.ended = time(NULL);
    crash_point(job->kind->name, "finish", "");
    int r = catalogue_begin(catalogue, err);
    if (r < 0)
        return r;
    r = cause ? job->kind->abandon(job, cause, undone, err) : job->kind->finish(job, err);
    if (r == 0)
        r = job_write(job, catalogue_job_update, err);
    if (r < 0) {
        catalogue_rollback(catalogue);
        return r;
    }
    event_record(job->manager, cause ? "job.failed" : "job.succeeded", job->record.id, job_event_data(job));
    r = catalogue_commit(catalogue, err);
    if (r == 0)
        crash_point(job->kind->name, "finish", ":after");
    return r;
}

/* Remember the cause in the record, so that undoing after a restart still knows it. */
static void job_record_cause(struct job *job, const struct error *cause)
{
    CLEANUP_JSON json_t *json = error_to_json(cause);
    free(job->record.error);
    job->record.error = json_text(json);
}

static void job_recorded_cause(const struct job *job, struct error *ret_cause)
{
    CLEANUP_JSON json_t *json = json_loads(job->record.error ? job->record.error : "{}", 0, NULL);
    error_from_json(json, ret_cause);
}

bool job_run(struct job *job)
{
    struct error cause = ERROR_INIT, last = ERROR_INIT;
    size_t index = job_step_index(job);
    bool failed = strcmp(job->record.state, "undoing") == 0, undone = true;
    if (failed) {
        job_recorded_cause(job, &cause);
    } else if (job_forward(job, &index, &cause) < 0) {
        failed = true;
        if (job->manager->stopping && !atomic_load(&job->cancelled) && cause.errnum == ECANCELED)
            return false; /* interrupted: goes on at the next start */
        job_record_cause(job, &cause);
    }
    if (failed)
        undone = job_backward(job, index);
    if (job_close(job, failed ? &cause : NULL, undone, &last) < 0)
        log_error("job %s (%s) of volume '%s' cannot be closed, and goes on at the next start: %s", job->record.id,
                  job->kind->name, job->record.volume_name, last.message);
    else if (failed)
        log_warning("job %s (%s) of volume '%s' %s: %s", job->record.id, job->kind->name, job->record.volume_name,
                    job->record.state, cause.message);
    else
        log_info("job %s (%s) of volume '%s' done", job->record.id, job->kind->name, job->record.volume_name);
    return true;
}
