// SPDX-License-Identifier: Apache-2.0
/*
 * volume-export: a file beside the target under a name that only this job has, filled, then given the target's name,
 * which must be free. So the target never shows a half-written image, nothing is overwritten, and what a crash leaves
 * is known by its name to be ours. Every path is reached with the caller's rights.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checked.h"
#include "provisioner/volume/changed.h"

static int export_insert(struct job *job, void *arg, struct error *err)
{
    struct volume_record volume = {0};
    (void)arg;
    int r = job_volume(job, &volume, err);
    if (r == 0 && !job_get(job, "view")[0])
        r = volume_check_free(job->manager, &volume, true, err);
    return r < 0 ? r : volume_check_ready(job->manager, &volume, err);
}

static int check_export(const struct export_spec *s, struct error *err)
{
    const char *format = s->format ? s->format : "qcow2";
    if (!s->target || s->target[0] != '/' || strlen(s->target) >= CATALOGUE_PATH_MAX - 64)
        return error_set(err, EINVAL, "an export needs an absolute target");
    if (s->target[strlen(s->target) - 1] == '/')
        return error_set(err, EINVAL, "the target must name a file");
    if (strcmp(format, "qcow2") != 0 && strcmp(format, "raw") != 0)
        return error_set(err, EINVAL, "format must be qcow2 or raw");
    if (s->since && (strcmp(format, "qcow2") != 0 || !strchr(s->volume, '@')))
        return error_set(err, EINVAL, "what changed since a snapshot can be exported of VOLUME@SNAPSHOT as qcow2 only");
    return 0;
}

int manager_volume_export(struct manager *m, const struct caller *caller, const struct export_spec *spec,
                          struct ticket *ret_ticket, struct error *err)
{
    struct volume_record volume = {0};
    struct snapshot_record snapshot = {0}, base = {0};
    CLEANUP_JOB struct job *job = NULL;
    if (!spec->volume)
        return error_set(err, EINVAL, "an export needs a volume");
    int r = caller_require(caller, CALLER_OPERATOR, err);
    if (r == 0)
        r = check_export(spec, err);
    if (r == 0)
        r = volume_or_snapshot_find(m, spec->volume, &volume, &snapshot, err);
    if (r == 0 && spec->since)
        r = changed_since_find(m, &volume, spec->since, &base, err);
    if (r == 0)
        r = job_create(m, &job_volume_export, &volume, "", caller,
                       json_pack("{s:s, s:s, s:s, s:s}", "target", spec->target, "format",
                                 spec->format ? spec->format : "qcow2", "view", snapshot.id, "base", base.id),
                       &job, err);
    if (r < 0)
        return r;
    char temporary[CATALOGUE_PATH_MAX];
    (void)snprintf(temporary, sizeof(temporary), "%.*s/.platter-%s", (int)(strrchr(spec->target, '/') - spec->target),
                   spec->target, job->record.id);
    r = job_set(job, "temporary", temporary, err);
    return r < 0 ? r : job_submit(&job, export_insert, NULL, ret_ticket, err);
}

/* -EEXIST when the caller sees something at the target. Only a courtesy: the last step is what decides. */
static int check_target_free(const struct job *job, const struct rights *rights, struct error *err)
{
    CLEANUP_CLOSE int fd = -1;
    int r = rights_open(rights, job_get(job, "target"), O_PATH | O_NOFOLLOW, 0, &fd, err);
    if (r == -ENOENT)
        return 0;
    return r < 0 ? r : error_set(err, EEXIST, "'%s' exists: nothing is overwritten", job_get(job, "target"));
}

static int step_export_file(struct job *job, struct error *err)
{
    struct rights rights;
    struct stat st;
    CLEANUP_CLOSE int fd = -1;
    job_rights(job, &rights);
    int r = check_target_free(job, &rights, err);
    if (r == 0)
        r = rights_unlink(&rights, job_get(job, "temporary"), err); /* of an earlier run of this step */
    if (r == 0)
        r = rights_open(&rights, job_get(job, "temporary"), O_RDWR | O_CREAT | O_EXCL, 0600, &fd, err);
    if (r < 0)
        return r;
    if (fstat(fd, &st) < 0)
        return error_sys(err, errno, "look at '%s'", job_get(job, "temporary"));
    return job_set_number(job, "inode", st.st_ino, err);
}

static int undo_export_file(struct job *job, struct error *err)
{
    struct rights rights;
    job_rights(job, &rights);
    return rights_unlink(&rights, job_get(job, "temporary"), err);
}

/* What the file of a snapshot says of itself, for import --onto; "" of a volume. */
static int make_note(const struct job *job, const struct snapshot_record *base, char **ret_note, struct error *err)
{
    struct snapshot_record s = {0};
    int r = catalogue_snapshot_by_id(job->manager->catalogue, job_get(job, "view"), &s, err);
    if (r < 0)
        return r;
    CLEANUP_JSON json_t *note =
        json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I}", "platter", 1, "volume", s.volume_id, "volume_name",
                  job->record.volume_name, "base", base->id, "base_name", base->name, "target", s.id, "target_name",
                  s.name, "base_size", (json_int_t)base->size, "size", (json_int_t)s.size);
    *ret_note = json_text(note);
    return *ret_note ? 0 : error_sys(err, ENOMEM, "export");
}

static int write_changes(struct job *job, const struct chain *chain, const struct snapshot_record *base, int fd,
                         const char *note, uint64_t *ret_bytes, struct error *err)
{
    struct blk_worker worker = job_worker(job);
    char label[2 * NAME_MAX_BYTES];
    unsigned layers = 0;
    int r = changed_layers(job->manager, chain->records, chain->count, base, &layers, err);
    if (r < 0)
        return r;
    if (layers == 0)
        return error_set(err, EINVAL, "nothing can change from a snapshot to itself");
    (void)snprintf(label, sizeof(label), "%s@%s", job->record.volume_name, base->name);
    struct blk_create to = {
        .format = "qcow2", .extended_l2 = true, .backing = label, .backing_format = "qcow2", .note = note};
    return blk_worker_export_since(&worker, chain->layers, chain->count, layers, fd, &to, ret_bytes, err);
}

static int write_file(struct job *job, const struct chain *chain, int fd, uint64_t *ret_bytes, struct error *err)
{
    struct blk_worker worker = job_worker(job);
    struct snapshot_record base = {0};
    CLEANUP_FREE char *note = NULL;
    const char *format = job_get(job, "format");
    int r = 0;
    if (job_get(job, "base")[0])
        r = catalogue_snapshot_by_id(job->manager->catalogue, job_get(job, "base"), &base, err);
    if (r == 0 && job_get(job, "view")[0] && strcmp(format, "qcow2") == 0)
        r = make_note(job, &base, &note, err);
    if (r < 0)
        return r;
    if (base.id[0])
        return write_changes(job, chain, &base, fd, note, ret_bytes, err);
    struct blk_create to = {.format = format, .note = note};
    return blk_worker_convert(&worker, chain->layers, chain->count, fd, &to, ret_bytes, err);
}

static int step_export_convert(struct job *job, struct error *err)
{
    struct rights rights;
    struct volume_record volume = {0};
    CLEANUP_CHAIN struct chain chain = {0};
    CLEANUP_CLOSE int fd = -1;
    job_rights(job, &rights);
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = chain_open(job->manager, &volume, true, &chain, err);
    if (r == 0)
        r = rights_open(&rights, job_get(job, "temporary"), O_RDWR | O_NOFOLLOW, 0, &fd, err);
    if (r < 0)
        return r;
    if (ftruncate(fd, 0) < 0)
        return error_sys(err, errno, "empty '%s'", job_get(job, "temporary"));
    uint64_t bytes = 0;
    r = write_file(job, &chain, fd, &bytes, err);
    return r < 0 ? r : job_set_number(job, "bytes", bytes, err);
}

static int step_export_publish(struct job *job, struct error *err)
{
    struct rights rights;
    struct stat st;
    CLEANUP_CLOSE int fd = -1;
    job_rights(job, &rights);
    int r = rights_publish(&rights, job_get(job, "temporary"), job_get(job, "target"), err);
    if (r != -ENOENT)
        return r == -EEXIST ? error_set(err, EEXIST, "'%s' exists: nothing is overwritten", job_get(job, "target")) : r;
    /* An earlier run of this step may have done it. */
    if (rights_open(&rights, job_get(job, "target"), O_PATH | O_NOFOLLOW, 0, &fd, NULL) == 0 && fstat(fd, &st) == 0 &&
        st.st_ino == job_get_number(job, "inode"))
        return 0;
    return r;
}

static const struct job_step export_steps[] = {
    {.name = "file", .run = step_export_file, .undo = undo_export_file},
    {.name = "convert", .run = step_export_convert},
    {.name = "publish", .run = step_export_publish, .final = false},
};

static int finish_export(struct job *job, struct error *err)
{
    CLEANUP_JSON json_t *result =
        json_pack("{s:s, s:s, s:s, s:I}", "volume", job->record.volume_name, "target", job_get(job, "target"), "format",
                  job_get(job, "format"), "bytes", (json_int_t)job_get_number(job, "bytes"));
    free(job->record.result);
    job->record.result = json_text(result);
    if (!job->record.result)
        return error_sys(err, ENOMEM, "export");
    event_record(job->manager, "volume.exported", job->record.volume_id, json_incref(result));
    return 0;
}

static int abandon_export(struct job *job, const struct error *cause, bool undone, struct error *err)
{
    (void)job, (void)cause, (void)undone, (void)err;
    return 0; /* the volume was only read */
}

const struct job_kind job_volume_export = {
    .name = "volume-export",
    .steps = export_steps,
    .step_count = ARRAY_SIZE(export_steps),
    .finish = finish_export,
    .abandon = abandon_export,
};
