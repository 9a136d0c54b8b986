// SPDX-License-Identifier: Apache-2.0
/* The API resource "attachments": requests to attach and to detach, and the ends of their jobs. */
#include "provisioner/volume/attach.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/text.h"
#include "provisioner/volume/server.h"
#include "provisioner/volume/snapshot.h"

#define QUEUES_DEFAULT 2
#define QUEUES_MAX 16

const char *const attachment_facts[] = {"device", "filesystem", "socket", "queues",      "server_pid", "qemu",
                                        "qmp",    "canonical",  "owner",  "export_name", "serial",     NULL};

void attach_label(const struct job *job, char *label, size_t size)
{
    (void)snprintf(label, size, "platter/%s", job->record.attachment_id);
}

char *attach_facts_text(const struct job *job)
{
    CLEANUP_JSON json_t *facts = json_object();
    for (size_t i = 0; attachment_facts[i]; i++) {
        json_t *fact = json_object_get(job->data, attachment_facts[i]);
        if (fact)
            (void)json_object_set(facts, attachment_facts[i], fact);
    }
    return json_text(facts);
}

/* ---- the request to attach --------------------------------------------------------------------------------- */

static int check_target(const char *target, char normal[CATALOGUE_PATH_MAX], struct error *err)
{
    if (!target || target[0] != '/' || strlen(target) >= CATALOGUE_PATH_MAX)
        return error_set(err, EINVAL, "a mount needs an absolute target");
    for (const char *p = target; *p; p++) {
        if ((unsigned char)*p < ' ' || *p == 127)
            return error_set(err, EINVAL, "the target must not contain control characters");
    }
    target_normal(target, normal, CATALOGUE_PATH_MAX);
    for (const char *p = strchr(normal, '/'); p; p = strchr(p + 1, '/')) {
        size_t part = strcspn(p + 1, "/");
        if ((part == 1 && p[1] == '.') || (part == 2 && p[1] == '.' && p[2] == '.'))
            return error_set(err, EINVAL, "the target must not contain '.' or '..'");
    }
    return 0;
}

static int check_words(const struct attach_spec *s, struct error *err)
{
    static const char *const missing[] = {"ublk", "nbd"};
    const char *via = s->via ? s->via : "auto", *export = s->export ? s->export : "vhost-user-blk";
    bool vm = strcmp(s->kind, "vm") == 0;
    for (size_t i = 0; i < ARRAY_SIZE(missing); i++) {
        if (strcmp(via, missing[i]) == 0)
            return error_set(err, EOPNOTSUPP, "this platter offers no devices through %s: use auto, loop or fuse", via);
    }
    if (strcmp(via, "auto") != 0 && strcmp(via, "loop") != 0 && strcmp(via, "fuse") != 0)
        return error_set(err, EINVAL, "via must be auto, loop or fuse");
    if (strcmp(export, "vhost-user-blk") != 0 && strcmp(export, "nbd") != 0)
        return error_set(err, EINVAL, "export must be vhost-user-blk or nbd");
    if (!vm && strcmp(s->kind, "device") != 0 && strcmp(s->kind, "mount") != 0)
        return error_set(err, EINVAL, "kind must be mount, device or vm");
    if (s->target && strcmp(s->kind, "mount") != 0)
        return error_set(err, EINVAL, "only a mount has a target");
    if (s->queues > QUEUES_MAX)
        return error_set(err, EINVAL, "at most %d queues", QUEUES_MAX);
    if (s->holder && strlen(s->holder) >= NAME_MAX_BYTES)
        return error_set(err, EINVAL, "holder may have at most 63 bytes");
    if (s->qmp && (!vm || s->qmp[0] != '/'))
        return error_set(err, EINVAL, "qmp takes the absolute path of a socket, and only for a vm");
    if (s->mount_options && strlen(s->mount_options) > 1024)
        return error_set(err, EINVAL, "too many mount options");
    return 0;
}

/* How the device is made: a loop device straight over a raw file, or over the FUSE file of a block server. */
static int choose_via(struct manager *m, const struct attach_spec *s, const struct volume_record *volume,
                      char via[WORD_MAX], struct error *err)
{
    if (strcmp(s->kind, "vm") == 0) {
        text_copy_bounded(via, WORD_MAX, s->export ? s->export : "vhost-user-blk");
        return 0;
    }
    CLEANUP_FREE struct layer_record *layers = NULL;
    size_t count = 0;
    int r = catalogue_layer_chain(m->catalogue, volume->top_layer, &layers, &count, err);
    if (r < 0)
        return r;
    bool plain = count == 1 && strcmp(layers[0].format, "raw") == 0;
    const char *wanted = s->via && strcmp(s->via, "auto") != 0 ? s->via : plain ? "loop" : "fuse";
    if (!plain && strcmp(wanted, "loop") == 0)
        return error_set(err, EOPNOTSUPP, "only a raw volume can be a loop device without a server: use via fuse");
    text_copy_bounded(via, WORD_MAX, wanted);
    return 0;
}

static int check_filesystem(const struct attach_spec *s, const struct volume_record *volume, struct error *err)
{
    if (strcmp(s->kind, "mount") != 0)
        return 0;
    if (strcmp(volume->filesystem, "none") == 0) {
        (void)error_set(err, EINVAL, "volume '%s' holds no file system by its record", volume->name);
        return error_code(err, "no-filesystem");
    }
    if (s->filesystem && volume->filesystem[0] && strcmp(s->filesystem, volume->filesystem) != 0)
        return error_set(err, EINVAL, "volume '%s' is for %s, not %s", volume->name, volume->filesystem, s->filesystem);
    if (s->read_only && !volume->formatted)
        return error_set(err, EINVAL, "volume '%s' was never formatted, so there is nothing to mount read-only",
                         volume->name);
    return 0;
}

/* The same mount was asked for before: it is there or on its way. -ENOENT: no. */
static int attach_existing(struct manager *m, const struct attach_spec *s, const struct volume_record *volume,
                           const struct snapshot_record *snapshot, const char *target, struct ticket *ret_ticket,
                           struct error *err)
{
    struct attachment_record a = {0};
    if (strcmp(s->kind, "mount") != 0)
        return -ENOENT;
    int r = catalogue_attachment_find(m->catalogue, target, &a, NULL);
    if (r < 0)
        return r;
    bool same = strcmp(a.volume_id, volume->id) == 0 && a.read_only == s->read_only &&
                strcmp(a.snapshot_id, snapshot->id) == 0 &&
                (strcmp(a.state, "attached") == 0 || strcmp(a.state, "attaching") == 0);
    if (same) {
        *ret_ticket = (struct ticket){.existed = true};
        text_copy(ret_ticket->object, a.id);
        if (strcmp(a.state, "attaching") == 0)
            job_find_active(m, a.id, ret_ticket->job);
        r = 0;
    } else if (strcmp(a.volume_id, volume->id) == 0) {
        r = -ENOENT; /* the volume's own state says more */
    } else {
        (void)error_set(err, EBUSY, "'%s' is the target of attachment %s", target, a.id);
        (void)error_holder(err, a.id);
        (void)error_hint(err, "platter detach %s", a.id);
        r = error_code(err, "target-busy");
    }
    attachment_record_done(&a);
    return r;
}

static int attach_insert(struct job *job, void *arg, struct error *err)
{
    struct attachment_record *a = arg;
    struct manager *m = job->manager;
    struct volume_record volume = {0};
    int r = job_volume(job, &volume, err);
    if (r == 0 && !a->snapshot_id[0])
        r = volume_check_free(m, &volume, a->read_only, err);
    if (r == 0)
        r = volume_check_ready(m, &volume, err);
    if (r < 0)
        return r;
    /* Handed out for writing, it may hold anything from now on. */
    if (!a->read_only && strcmp(a->kind, "mount") != 0 && strcmp(volume.content, "any") != 0) {
        text_copy(volume.content, "any");
        r = catalogue_volume_update(m->catalogue, &volume, err);
    }
    return r < 0 ? r : catalogue_attachment_insert(m->catalogue, a, err);
}

static json_t *attach_data(const struct attach_spec *s, const struct caller *caller, const struct volume_record *v,
                           const struct snapshot_record *snapshot)
{
    json_t *data = json_pack("{s:i, s:s, s:s, s:{s:I, s:I}}", "queues", (int)(s->queues ? s->queues : QUEUES_DEFAULT),
                             "export_name", v->name, "serial", snapshot->id[0] ? snapshot->id : v->id, "owner", "uid",
                             (json_int_t)caller->uid, "gid", (json_int_t)caller->gid);
    if (snapshot->id[0])
        (void)json_object_set_new(data, "view", json_string(snapshot->id));
    if (s->mount_options)
        (void)json_object_set_new(data, "mount_options", json_string(s->mount_options));
    if (s->qmp)
        (void)json_object_set_new(data, "qmp", json_string(s->qmp));
    if (s->filesystem)
        (void)json_object_set_new(data, "wanted_filesystem", json_string(s->filesystem));
    if (strcmp(s->kind, "vm") != 0)
        (void)json_object_del(data, "queues");
    return data;
}

static int attach_fill(struct manager *m, const struct caller *caller, const struct attach_spec *s,
                       const struct volume_record *volume, const char *target, struct attachment_record *a,
                       struct error *err)
{
    *a = (struct attachment_record){
        .read_only = s->read_only, .uid = caller->uid, .gid = caller->gid, .pid = caller->pid, .created = time(NULL)};
    int r = catalogue_id("att-", a->id);
    if (r < 0)
        return error_sys(err, r, "new attachment");
    r = choose_via(m, s, volume, a->via, err);
    if (r < 0)
        return r;
    text_copy(a->volume_id, volume->id);
    text_copy(a->kind, s->kind);
    text_copy(a->state, "attaching");
    text_copy(a->target, target);
    text_copy(a->boot_id, m->boot_id);
    (void)snprintf(a->holder, sizeof(a->holder), "%s", s->holder ? s->holder : "");
    a->data = strdup("{}");
    return a->data ? 0 : error_sys(err, ENOMEM, "new attachment");
}

static const struct job_kind *attach_kind(const char *kind)
{
    if (strcmp(kind, "vm") == 0)
        return &job_attach_vm;
    return strcmp(kind, "mount") == 0 ? &job_attach_mount : &job_attach_device;
}

int manager_attach(struct manager *m, const struct caller *caller, const struct attach_spec *spec,
                   struct ticket *ret_ticket, struct error *err)
{
    char target[CATALOGUE_PATH_MAX] = "";
    struct volume_record volume = {0};
    struct snapshot_record snapshot = {0};
    struct attachment_record a = {0};
    struct attach_spec own;
    CLEANUP_JOB struct job *job = NULL;
    if (!spec->volume || !spec->kind)
        return error_set(err, EINVAL, "an attachment needs a volume and a kind");
    int r = caller_require(caller, CALLER_OPERATOR, err);
    if (r == 0)
        r = check_words(spec, err);
    if (r == 0 && strcmp(spec->kind, "mount") == 0)
        r = check_target(spec->target, target, err);
    if (r == 0)
        r = volume_or_snapshot_find(m, spec->volume, &volume, &snapshot, err);
    if (r < 0)
        return r;
    if (snapshot.id[0]) { /* which never takes writes */
        own = *spec;
        own.read_only = true;
        spec = &own;
    }
    r = attach_existing(m, spec, &volume, &snapshot, target, ret_ticket, err);
    if (r != -ENOENT)
        return r;
    r = check_filesystem(spec, &volume, err);
    if (r == 0)
        r = attach_fill(m, caller, spec, &volume, target, &a, err);
    text_copy(a.snapshot_id, snapshot.id);
    if (r == 0)
        r = job_create(m, attach_kind(spec->kind), &volume, a.id, caller, attach_data(spec, caller, &volume, &snapshot),
                       &job, err);
    if (r == 0)
        r = job_submit(&job, attach_insert, &a, ret_ticket, err);
    attachment_record_done(&a);
    return r;
}

/* ---- the end of attaching ---------------------------------------------------------------------------------- */

int finish_attach(struct job *job, struct error *err)
{
    struct manager *m = job->manager;
    struct attachment_record a = {0};
    struct volume_record volume = {0};
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = job_attachment(job, &a, err);
    if (r < 0)
        return r;
    if (strcmp(a.kind, "vm") == 0)
        (void)json_object_set_new(job->data, "qemu", vm_instructions(job, &a, &volume));
    text_copy(a.state, "attached");
    free(a.data);
    a.data = attach_facts_text(job);
    r = a.data ? catalogue_attachment_update(m->catalogue, &a, err) : error_sys(err, ENOMEM, "attach");
    if (r == 0)
        event_record(m, "attachment.attached", a.id,
                     json_pack("{s:s, s:s, s:s}", "volume", volume.name, "volume_id", volume.id, "kind", a.kind));
    attachment_record_done(&a);
    if (r == 0)
        server_watch(m, job->record.attachment_id); /* its end before now is seen, too */
    return r;
}

int abandon_attach(struct job *job, const struct error *cause, bool undone, struct error *err)
{
    struct manager *m = job->manager;
    if (undone)
        return catalogue_attachment_delete(m->catalogue, job->record.attachment_id, err);
    struct attachment_record a = {0};
    int r = job_attachment(job, &a, err);
    if (r < 0)
        return r;
    (void)json_object_set_new(job->data, "error", json_string(cause->message));
    text_copy(a.state, "failed");
    free(a.data);
    a.data = attach_facts_text(job);
    r = a.data ? catalogue_attachment_update(m->catalogue, &a, err) : error_sys(err, ENOMEM, "attach");
    if (r == 0)
        event_record(m, "attachment.failed", a.id, json_pack("{s:s}", "cause", cause->message));
    attachment_record_done(&a);
    return r;
}

/* ---- detaching --------------------------------------------------------------------------------------------- */

static int detach_insert(struct job *job, void *arg, struct error *err)
{
    struct manager *m = job->manager;
    struct attachment_record a = {0};
    (void)arg;
    char active[ID_MAX];
    if (catalogue_job_active(m->catalogue, job->record.attachment_id, active, NULL) == 0) {
        (void)error_set(err, EBUSY, "job '%s' on attachment '%s' has not ended", active, job->record.attachment_id);
        (void)error_hint(err, "platter job wait %s", active);
        return error_code(err, "job-running");
    }
    int r = job_attachment(job, &a, err);
    if (r < 0)
        return r;
    (void)merge_cancel(m, job->record.volume_id);
    r = job_set(job, "previous", a.state, err);
    text_copy(a.state, "detaching");
    if (r == 0)
        r = catalogue_attachment_update(m->catalogue, &a, err);
    attachment_record_done(&a);
    return r;
}

int manager_detach(struct manager *m, const struct caller *caller, const char *id, struct ticket *ret_ticket,
                   struct error *err)
{
    struct attachment_record a = {0};
    struct volume_record volume = {0};
    CLEANUP_JOB struct job *job = NULL;
    int r = caller_require(caller, CALLER_OPERATOR, err);
    if (r == 0)
        r = attachment_find(m, id, &a, err);
    if (r < 0)
        return r;
    r = catalogue_volume_find(m->catalogue, a.volume_id, &volume, err);
    struct ticket ticket = {.existed = true};
    text_copy(ticket.object, a.id);
    if (r == 0 && strcmp(a.state, "detaching") == 0)
        job_find_active(m, a.id, ticket.job);
    if (ticket.job[0]) {
        *ret_ticket = ticket;
    } else if (r == 0) {
        r = job_create(m, &job_detach, &volume, a.id, caller, json_loads(a.data, 0, NULL), &job, err);
        if (r == 0)
            r = job_submit(&job, detach_insert, NULL, ret_ticket, err);
    }
    attachment_record_done(&a);
    return r;
}

static int finish_detach(struct job *job, struct error *err)
{
    CLEANUP_JSON json_t *result =
        json_pack("{s:s, s:s, s:s, s:s}", "id", job->record.attachment_id, "volume", job->record.volume_name,
                  "volume_id", job->record.volume_id, "state", "detached");
    free(job->record.result);
    job->record.result = json_text(result);
    event_record(job->manager, "attachment.detached", job->record.attachment_id,
                 json_pack("{s:s, s:s}", "volume", job->record.volume_name, "volume_id", job->record.volume_id));
    return catalogue_attachment_delete(job->manager->catalogue, job->record.attachment_id, err);
}

/* Refused at its first real step, nothing changed; later, something is missing, and detach is to be asked again. */
static int abandon_detach(struct job *job, const struct error *cause, bool undone, struct error *err)
{
    struct attachment_record a = {0};
    (void)cause;
    int r = job_attachment(job, &a, err);
    if (r < 0)
        return r;
    (void)snprintf(a.state, WORD_MAX, "%s", undone ? job_get(job, "previous") : "failed");
    r = catalogue_attachment_update(job->manager->catalogue, &a, err);
    attachment_record_done(&a);
    return r;
}

static const struct job_step device_steps[] = {
    {.name = "server", .run = step_server, .undo = undo_server},
    {.name = "fuse", .run = step_fuse, .undo = undo_fuse},
    {.name = "loop", .run = step_loop, .undo = undo_loop},
};

const struct job_kind job_attach_device = {
    .name = "attach-device",
    .steps = device_steps,
    .step_count = ARRAY_SIZE(device_steps),
    .finish = finish_attach,
    .abandon = abandon_attach,
};

static const struct job_step mount_steps[] = {
    {.name = "target", .run = step_target},
    {.name = "server", .run = step_server, .undo = undo_server},
    {.name = "fuse", .run = step_fuse, .undo = undo_fuse},
    {.name = "loop", .run = step_loop, .undo = undo_loop},
    {.name = "format", .run = step_format},
    {.name = "fit", .run = step_fit},
    {.name = "mount", .run = step_mount, .undo = undo_mount},
    {.name = "grow", .run = step_grow},
};

const struct job_kind job_attach_mount = {
    .name = "attach-mount",
    .steps = mount_steps,
    .step_count = ARRAY_SIZE(mount_steps),
    .finish = finish_attach,
    .abandon = abandon_attach,
};

static const struct job_step vm_steps[] = {
    {.name = "server", .run = step_server, .undo = undo_server},
    {.name = "listen", .run = step_listen, .undo = undo_listen},
    {.name = "plug", .run = step_plug, .undo = undo_plug},
};

const struct job_kind job_attach_vm = {
    .name = "attach-vm",
    .steps = vm_steps,
    .step_count = ARRAY_SIZE(vm_steps),
    .finish = finish_attach,
    .abandon = abandon_attach,
};

static const struct job_step detach_steps[] = {
    {.name = "end-waits", .run = step_end_waits, .undo = undo_end_waits},
    {.name = "unplug", .run = step_unplug},
    {.name = "unmount", .run = step_unmount},
    {.name = "loop", .run = undo_loop, .final = true},
    {.name = "fuse", .run = undo_fuse, .final = true},
    {.name = "server", .run = undo_server, .final = true},
    {.name = "socket", .run = undo_listen, .final = true},
};

const struct job_kind job_detach = {
    .name = "detach",
    .steps = detach_steps,
    .step_count = ARRAY_SIZE(detach_steps),
    .finish = finish_detach,
    .abandon = abandon_detach,
};
