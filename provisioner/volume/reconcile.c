// SPDX-License-Identifier: Apache-2.0
/*
 * At start: does the host agree with the catalogue? Attachments of an earlier boot are gone with it. Those of this boot
 * are found again by their servers' sockets, devices and mounts, or become "failed". Unfinished jobs are queued again.
 * What is left over is told as events.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/log.h"
#include "common/text.h"
#include "provisioner/node/loop.h"
#include "provisioner/node/mount.h"
#include "provisioner/volume/attach.h"
#include "provisioner/volume/server.h"

static bool attachment_alive(struct manager *m, const struct attachment_record *a, const json_t *facts,
                             struct error *err)
{
    struct blk_client *client;
    if (strcmp(a->via, "loop") != 0 && server_connect(m, a->id, &client, err) < 0)
        return false;
    const char *device = json_string_value(json_object_get(facts, "device"));
    if (!device)
        return true;
    char label[LOOP_LABEL_MAX];
    CLEANUP_CLOSE int fd = -1;
    struct stat st;
    (void)snprintf(label, sizeof(label), "platter/%s", a->id);
    if (loop_open(device, label, 0, &fd, err) < 0)
        return false;
    const char *canonical = json_string_value(json_object_get(facts, "canonical"));
    if (!canonical || (fstat(fd, &st) == 0 && mount_is_at(canonical, st.st_rdev)))
        return true;
    (void)error_set(err, ESTALE, "nothing of the volume is mounted at '%s' any more", canonical);
    return false;
}

static int reconcile_live(struct manager *m, struct attachment_record *a, struct error *err)
{
    CLEANUP_JSON json_t *facts = json_loads(a->data, 0, NULL);
    struct error cause = ERROR_INIT;
    if (attachment_alive(m, a, facts, &cause)) {
        server_watch(m, a->id);
        return 0;
    }
    log_error("attachment '%s': %s", a->id, cause.message);
    text_copy(a->state, "failed");
    event_record(m, "attachment.failed", a->id,
                 json_pack("{s:s, s:s}", "volume_id", a->volume_id, "cause", cause.message));
    return catalogue_attachment_update(m->catalogue, a, err);
}

/* Of an earlier boot. One that a job works on is left to that job, which begins again. */
static int reconcile_stale(struct manager *m, struct attachment_record *a, struct error *err)
{
    char job[ID_MAX];
    if (catalogue_job_active(m->catalogue, a->id, job, NULL) == 0)
        return 0;
    event_record(m, "attachment.dropped", a->id,
                 json_pack("{s:s, s:s}", "volume_id", a->volume_id, "cause", "the host was started anew"));
    return catalogue_attachment_delete(m->catalogue, a->id, err);
}

static int reconcile_attachments(struct manager *m, struct error *err)
{
    struct attachment_record *list;
    size_t count = 0;
    int r = catalogue_attachment_list(m->catalogue, NULL, &list, &count, err);
    if (r < 0)
        return r;
    for (size_t i = 0; r == 0 && i < count; i++) {
        if (strcmp(list[i].boot_id, m->boot_id) != 0)
            r = reconcile_stale(m, &list[i], err);
        else if (strcmp(list[i].state, "attached") == 0)
            r = reconcile_live(m, &list[i], err);
    }
    attachment_records_free(list, count);
    return r;
}

/* A job on an attachment of an earlier boot: what its steps made is gone, so it forgets that and begins again. */
static int job_renew(struct manager *m, struct job_record *record, struct error *err)
{
    static const char *const gone[] = {"device", "server_pid", "socket", "canonical"};
    struct attachment_record a = {0};
    if (!record->attachment_id[0] || catalogue_attachment_find(m->catalogue, record->attachment_id, &a, NULL) < 0)
        return 0;
    int r = 0;
    if (strcmp(a.boot_id, m->boot_id) != 0) {
        CLEANUP_JSON json_t *data = json_loads(record->data, 0, NULL);
        for (size_t i = 0; i < sizeof(gone) / sizeof(gone[0]); i++)
            (void)json_object_del(data, gone[i]);
        free(record->data);
        record->data = json_text(data);
        if (strcmp(record->state, "undoing") != 0)
            record->step[0] = 0;
        text_copy(a.boot_id, m->boot_id);
        r = record->data ? catalogue_attachment_update(m->catalogue, &a, err) : error_sys(err, ENOMEM, "reconcile");
    }
    attachment_record_done(&a);
    return r;
}

static int reconcile_jobs(struct manager *m, struct error *err)
{
    struct job_record *list;
    size_t count = 0;
    int r = catalogue_job_list(m->catalogue, "active", 100000, &list, &count, err);
    if (r < 0)
        return r;
    for (size_t i = 0; r == 0 && i < count; i++) {
        r = job_renew(m, &list[i], err);
        if (r < 0)
            break;
        log_info("job %s (%s) of volume '%s' goes on at '%s'", list[i].id, list[i].kind, list[i].volume_name,
                 list[i].step);
        struct error local = ERROR_INIT;
        if (job_resume(m, &list[i], &local) < 0)
            log_error("%s", local.message); /* made by a newer platterd: left as it is */
    }
    job_records_free(list, count);
    return r;
}

static void reconcile_orphans(struct manager *m)
{
    json_t *orphans = NULL, *orphan;
    size_t i = 0;
    struct error err = ERROR_INIT;
    if (manager_orphan_list(m, &orphans, &err) < 0) {
        log_warning("look for orphans: %s", err.message);
        return;
    }
    json_array_foreach (orphans, i, orphan) {
        log_warning("orphan: %s %s", json_string_value(json_object_get(orphan, "kind")),
                    json_string_value(json_object_get(orphan, "name")));
        event_record(m, "orphan.found", "", json_incref(orphan));
    }
    json_decref(orphans);
}

int manager_reconcile(struct manager *m, struct error *err)
{
    int r = reconcile_attachments(m, err);
    if (r == 0)
        r = reconcile_jobs(m, err);
    if (r == 0)
        reconcile_orphans(m);
    return r;
}
