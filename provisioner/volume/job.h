/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jobs: what changes a volume, in named steps that are recorded before they are done.
 *
 * The intent (rows of the objects, and the job with its request) is committed before the first step. A step and its
 * undo are idempotent: each may run again after having run in whole or in part, because platterd may have died in
 * between, or because a power cut lost the record of later steps. A job that fails or is cancelled is undone from the
 * failing step back to the first; its last commit puts the records right (`finish` or `abandon`). After a restart it
 * goes on at its recorded step, forward or backward.
 *
 * Jobs on one volume run one after another in the order of their intents; others in parallel. A job may be on several
 * volumes: their ids are then in its data as "volumes", from its creation on.
 *
 * Crash points for tests: with PLATTER_CRASH_AT="KIND.STEP" in its environment the daemon kills itself (SIGKILL) before
 * doing that step, with "KIND.STEP:after" when the step is done but not yet recorded as such. "KIND.begin" is right
 * after the intent was committed, "KIND.finish" right before the last commit and "KIND.finish:after" right after it.
 * "KIND.STEP:undo" is before undoing a step. "KIND.STEP:fail" makes the step fail with EIO after having been done.
 * Several points are separated by commas.
 */
#ifndef PLATTER_PROVISIONER_VOLUME_JOB_H
#define PLATTER_PROVISIONER_VOLUME_JOB_H

#include <stdatomic.h>

#include "common/cleanup.h"
#include "provisioner/node/blk_client.h"
#include "provisioner/node/rights.h"
#include "provisioner/volume/manager.h"

struct job_step {
    const char *name;
    int (*run)(struct job *job, struct error *err);
    int (*undo)(struct job *job, struct error *err); /* NULL = nothing to undo */
    bool final; /* from this step on the job is no longer cancelled, and a failure is not undone */
};

struct job_kind {
    const char *name;
    const struct job_step *steps;
    size_t step_count;
    /* In the last transaction, after success; puts the records right and records the events. */
    int (*finish)(struct job *job, struct error *err);
    /* In the last transaction, after failure and undo. `undone` is false when undoing failed, or was not possible. */
    int (*abandon)(struct job *job, const struct error *cause, bool undone, struct error *err);
};

struct job {
    struct manager *manager;
    const struct job_kind *kind;
    struct job_record record; /* its data is kept in `data` while the job lives */
    json_t *data;
    int cancel_fd;           /* eventfd: readable once cancelled or interrupted */
    char (*volumes)[ID_MAX]; /* further volumes, of data's "volumes", that the job has to itself; never changed */
    size_t volume_count;
    atomic_bool cancelled;
    bool running; /* guarded by jobs_lock, as is next */
    struct job *next;
    int64_t progress_written; /* ms: when progress was last recorded */
};

/* A new job with its id, not yet recorded. `data` is taken over, also on failure. */
int job_create(struct manager *manager, const struct job_kind *kind, const struct volume_record *volume,
               const char *attachment_id, const struct caller *caller, json_t *data, struct job **ret_job,
               struct error *err);
struct job *job_free(struct job *job);
void job_free_cleanup(struct job **job);
#define CLEANUP_JOB CLEANUP(job_free_cleanup)

/* Within the transaction of the intent. */
int job_insert(struct job *job, struct error *err);
/* After its commit: take the job over, hand it to the workers, fill the ticket's job. */
void job_start(struct job *job, struct ticket *ret_ticket);
/* A record found at start becomes a job again. Takes over the record's memory. */
int job_resume(struct manager *manager, struct job_record *record, struct error *err);

/* Is the job on this volume; do two have one in common? */
bool job_concerns(const struct job *job, const char *volume_id);
bool job_overlaps(const struct job *job, const struct job *other);

/* Kind by name; NULL. */
const struct job_kind *job_kind_find(const char *name);

/* The job that has not ended on this volume or attachment ("" when none), for repeated requests. */
void job_find_active(struct manager *manager, const char *object_id, char ret_id[ID_MAX]);

/* The caller whose rights the job's files are reached with. */
void job_rights(const struct job *job, struct rights *ret_rights);

/* Facts that steps remember for undo and resume; recorded with the next step. job_save records them now. */
const char *job_get(const struct job *job, const char *key); /* "" when absent */
int job_set(struct job *job, const char *key, const char *value, struct error *err);
uint64_t job_get_number(const struct job *job, const char *key);
int job_set_number(struct job *job, const char *key, uint64_t value, struct error *err);
int job_save(struct job *job, struct error *err);

/* How workers of this job run: cancelled with it, telling their progress. */
struct blk_worker job_worker(struct job *job);

/* Ends all workers; used by manager_stop. */
int scheduler_start(struct manager *manager, struct error *err);
void scheduler_stop(struct manager *manager);

void crash_point_init(void);
void crash_point(const char *kind, const char *step, const char *suffix);
bool crash_point_is(const char *kind, const char *step, const char *suffix);

extern const struct job_kind job_volume_create, job_volume_import, job_volume_import_onto, job_volume_export,
    job_volume_resize, job_snapshot_create, job_snapshot_delete, job_snapshot_group_create, job_volume_clone,
    job_volume_restore, job_volume_merge, job_volume_shrink, job_volume_compact, job_volume_delete, job_volume_check,
    job_attach_device, job_attach_mount, job_attach_vm, job_detach;

#endif
