// SPDX-License-Identifier: Apache-2.0
/* Records as the API shows them, and the queries. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "provisioner/volume/lifecycle.h"

#define LIST_LIMIT 1000

/* ---- volumes ----------------------------------------------------------------------------------------------- */

static json_t *describe_layer(struct pool *pool, const struct layer_record *layer, uint64_t *used)
{
    json_t *json =
        json_pack("{s:s, s:s, s:I}", "id", layer->id, "format", layer->format, "size", (json_int_t)layer->size);
    uint64_t bytes = 0;
    if (pool && pool->ops->image_used(pool, layer->id, &bytes, NULL) == 0) {
        (void)json_object_set_new(json, "used", json_integer((json_int_t)bytes));
        *used += bytes;
    }
    if (layer->cluster_size) {
        (void)json_object_set_new(json, "cluster_size", json_integer(layer->cluster_size));
        (void)json_object_set_new(json, "version", json_integer(layer->version));
        (void)json_object_set_new(json, "extended_l2", json_boolean(layer->extended_l2));
        (void)json_object_set_new(json, "compression", json_string(layer->compression));
        (void)json_object_set_new(json, "refcount_bits", json_integer(layer->refcount_bits));
    }
    return json;
}

static void describe_layers(struct manager *m, const struct volume_record *record, json_t *json)
{
    CLEANUP_FREE struct layer_record *layers = NULL;
    CLEANUP_POOL struct pool *pool = NULL;
    size_t count = 0;
    uint64_t used = 0;
    json_t *array = json_array();
    (void)manager_pool_open(m, record->pool_id, &pool, NULL); /* missing: sizes on disk are left out */
    if (catalogue_layer_chain(m->catalogue, record->top_layer, &layers, &count, NULL) == 0 && count)
        (void)json_object_set_new(json, "format", json_string(layers[0].format));
    for (size_t i = 0; i < count; i++)
        (void)json_array_append_new(array, describe_layer(pool, &layers[i], &used));
    (void)json_object_set_new(json, "layers", array);
    if (pool)
        (void)json_object_set_new(json, "used", json_integer((json_int_t)used));
}

const char *volume_on_no_space(const struct volume_record *volume)
{
    return strstr(volume->spec, "\"on_no_space\":\"fail\"") ? "fail" : "pause";
}

json_t *describe_volume(struct manager *m, const struct volume_record *record)
{
    struct pool_record pool = {0};
    CLEANUP_FREE struct attachment_record *attachments = NULL;
    size_t count = 0;
    (void)catalogue_pool_find(m->catalogue, record->pool_id, &pool, NULL);
    (void)catalogue_attachment_list(m->catalogue, record->id, &attachments, &count, NULL);
    json_t *ids = json_array(), *conditions = json_object();
    for (size_t i = 0; i < count; i++) {
        (void)json_array_append_new(ids, json_string(attachments[i].id));
        condition_describe(m, &attachments[i], conditions);
        attachment_record_done(&attachments[i]);
    }
    const char *state = count && strcmp(record->state, "available") == 0 ? "attached" : record->state;
    json_t *json = json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:s, s:b, s:o, s:I}", "id", record->id, "name",
                             record->name, "kind", record->kind, "pool", pool.name, "state", state, "size",
                             (json_int_t)record->size, "filesystem", record->filesystem, "formatted", record->formatted,
                             "attachments", ids, "created", (json_int_t)record->created);
    (void)json_object_set_new(json, "on_no_space", json_string(volume_on_no_space(record)));
    (void)json_object_update(json, conditions);
    json_decref(conditions);
    describe_layers(m, record, json);
    return json;
}

int manager_volume_get(struct manager *m, const char *name_or_id, json_t **ret_volume, struct error *err)
{
    struct volume_record record = {0};
    int r = catalogue_volume_find(m->catalogue, name_or_id, &record, err);
    if (r == 0)
        *ret_volume = describe_volume(m, &record);
    return r;
}

int manager_volume_list(struct manager *m, const char *pool, const char *after, unsigned limit, json_t **ret_volumes,
                        struct error *err)
{
    CLEANUP_FREE struct volume_record *records = NULL;
    struct pool_record pool_record = {0};
    size_t count = 0;
    int r = pool ? catalogue_pool_find(m->catalogue, pool, &pool_record, err) : 0;
    if (r == 0)
        r = catalogue_volume_list(m->catalogue, pool ? pool_record.id : NULL, after,
                                  limit && limit < LIST_LIMIT ? limit : LIST_LIMIT, &records, &count, err);
    if (r < 0)
        return r;
    json_t *volumes = json_array();
    for (size_t i = 0; i < count; i++)
        (void)json_array_append_new(volumes, describe_volume(m, &records[i]));
    *ret_volumes = volumes;
    return 0;
}

/* ---- attachments ------------------------------------------------------------------------------------------- */

/* What the steps remember under these keys is shown as it is. */
static const char *const shown[] = {"device", "filesystem", "socket", "queues", "server_pid", "qemu", "error", "qmp"};

json_t *describe_attachment(struct manager *m, const struct attachment_record *record)
{
    struct volume_record volume = {0};
    (void)catalogue_volume_find(m->catalogue, record->volume_id, &volume, NULL);
    json_t *json =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:b, s:s, s:I, s:I, s:I, s:I}", "id", record->id, "volume", volume.name,
                  "volume_id", record->volume_id, "kind", record->kind, "state", record->state, "read_only",
                  record->read_only, "holder", record->holder, "uid", (json_int_t)record->uid, "gid",
                  (json_int_t)record->gid, "pid", (json_int_t)record->pid, "created", (json_int_t)record->created);
    struct snapshot_record snapshot = {0};
    if (record->snapshot_id[0] && catalogue_snapshot_by_id(m->catalogue, record->snapshot_id, &snapshot, NULL) == 0)
        (void)json_object_set_new(json, "snapshot", json_string(snapshot.name));
    if (record->target[0])
        (void)json_object_set_new(json, "target", json_string(record->target));
    bool vm = strcmp(record->kind, "vm") == 0;
    (void)json_object_set_new(json, vm ? "export" : "via", json_string(record->via));
    CLEANUP_JSON json_t *data = json_loads(record->data, 0, NULL);
    for (size_t i = 0; i < sizeof(shown) / sizeof(shown[0]); i++) {
        json_t *value = json_object_get(data, shown[i]);
        if (value)
            (void)json_object_set(json, shown[i], value);
    }
    condition_describe(m, record, json);
    return json;
}

void target_normal(const char *target, char *normal, size_t size)
{
    size_t length = 0;
    for (const char *p = target; *p && length < size - 1; p++) {
        if (*p != '/' || (p[1] != '/' && (p[1] != 0 || length == 0)))
            normal[length++] = *p;
    }
    normal[length] = 0;
}

int attachment_find(struct manager *m, const char *id_or_target, struct attachment_record *ret_record,
                    struct error *err)
{
    char normal[CATALOGUE_PATH_MAX];
    target_normal(id_or_target, normal, sizeof(normal));
    return catalogue_attachment_find(m->catalogue, normal, ret_record, err);
}

int manager_attachment_get(struct manager *m, const char *id_or_target, json_t **ret_attachment, struct error *err)
{
    struct attachment_record record = {0};
    int r = attachment_find(m, id_or_target, &record, err);
    if (r < 0)
        return r;
    *ret_attachment = describe_attachment(m, &record);
    attachment_record_done(&record);
    return 0;
}

int manager_attachment_list(struct manager *m, const char *volume, json_t **ret_attachments, struct error *err)
{
    struct attachment_record *records;
    struct volume_record volume_record = {0};
    size_t count = 0;
    int r = volume ? catalogue_volume_find(m->catalogue, volume, &volume_record, err) : 0;
    if (r == 0)
        r = catalogue_attachment_list(m->catalogue, volume ? volume_record.id : NULL, &records, &count, err);
    if (r < 0)
        return r;
    json_t *attachments = json_array();
    for (size_t i = 0; i < count; i++)
        (void)json_array_append_new(attachments, describe_attachment(m, &records[i]));
    attachment_records_free(records, count);
    *ret_attachments = attachments;
    return 0;
}

/* ---- jobs -------------------------------------------------------------------------------------------------- */

static json_t *describe_job(const struct job_record *record)
{
    const char *state = strcmp(record->state, "undoing") == 0 ? "running" : record->state;
    json_t *json = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:{s:I, s:I}, s:I}", "id", record->id, "kind",
                             record->kind, "volume", record->volume_name, "volume_id", record->volume_id, "state",
                             state, "step", record->step, "progress", "done", (json_int_t)record->done, "total",
                             (json_int_t)record->total, "created", (json_int_t)record->created);
    if (record->attachment_id[0])
        (void)json_object_set_new(json, "attachment", json_string(record->attachment_id));
    if (record->ended)
        (void)json_object_set_new(json, "ended", json_integer((json_int_t)record->ended));
    json_t *error = record->error ? json_loads(record->error, 0, NULL) : NULL;
    if (error) {
        (void)json_object_del(error, "errno");
        (void)json_object_set_new(json, "error", error);
    }
    return json;
}

int manager_job_get(struct manager *m, const char *id, json_t **ret_job, struct error *err)
{
    struct job_record record = {0};
    int r = catalogue_job_find(m->catalogue, id, &record, err);
    if (r < 0)
        return r;
    *ret_job = describe_job(&record);
    job_record_done(&record);
    return 0;
}

int manager_job_list(struct manager *m, const char *state, json_t **ret_jobs, struct error *err)
{
    struct job_record *records;
    size_t count = 0;
    int r = catalogue_job_list(m->catalogue, state, LIST_LIMIT, &records, &count, err);
    if (r < 0)
        return r;
    json_t *jobs = json_array();
    for (size_t i = 0; i < count; i++)
        (void)json_array_append_new(jobs, describe_job(&records[i]));
    job_records_free(records, count);
    *ret_jobs = jobs;
    return 0;
}

static void job_snapshot_object(struct manager *m, const struct job_record *record, json_t **ret_object)
{
    CLEANUP_JSON json_t *data = json_loads(record->data, 0, NULL);
    const char *id = json_string_value(json_object_get(data, "snapshot"));
    if (id && manager_snapshot_get_id(m, id, ret_object, NULL) == 0)
        (void)json_object_set(*ret_object, "pause_us", json_object_get(data, "pause_us"));
}

static void job_group_object(struct manager *m, const struct job_record *record, json_t **ret_object)
{
    CLEANUP_JSON json_t *data = json_loads(record->data, 0, NULL);
    const char *id = json_string_value(json_object_get(data, "group"));
    if (id && manager_snapshot_group_get(m, id, ret_object, NULL) == 0)
        (void)json_object_set(*ret_object, "pause_us", json_object_get(data, "pause_us"));
}

/* What the job made as it is now; when that is gone again, only its name. */
static json_t *job_object(struct manager *m, const struct job_record *record)
{
    json_t *object = NULL;
    if (record->result)
        object = json_loads(record->result, 0, NULL);
    else if (record->attachment_id[0])
        (void)manager_attachment_get(m, record->attachment_id, &object, NULL);
    else if (strcmp(record->kind, job_snapshot_create.name) == 0)
        job_snapshot_object(m, record, &object);
    else if (strcmp(record->kind, job_snapshot_group_create.name) == 0)
        job_group_object(m, record, &object);
    else
        (void)manager_volume_get(m, record->volume_id, &object, NULL);
    if (object)
        return object;
    return json_pack("{s:s, s:s, s:s}", "id", record->attachment_id[0] ? record->attachment_id : record->volume_id,
                     record->attachment_id[0] ? "volume" : "name", record->volume_name, "state", "deleted");
}

int manager_job_result(struct manager *m, const char *id, json_t **ret_object, struct error *err)
{
    struct job_record record = {0};
    int r = catalogue_job_find(m->catalogue, id, &record, err);
    if (r < 0)
        return r;
    if (!record.ended) {
        r = error_set(err, EINPROGRESS, "job '%s' has not ended", id);
    } else if (strcmp(record.state, "succeeded") == 0) {
        *ret_object = job_object(m, &record);
    } else {
        struct error cause;
        CLEANUP_JSON json_t *json = json_loads(record.error ? record.error : "{}", 0, NULL);
        error_from_json(json, &cause);
        r = error_copy(err, &cause);
    }
    job_record_done(&record);
    return r;
}
