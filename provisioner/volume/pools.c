// SPDX-License-Identifier: Apache-2.0
/* The API resource "pools". */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "provisioner/volume/manager.h"

#define OVERPROVISION_DEFAULT 10.0
#define OVERPROVISION_MAX 1000.0

void pool_put(struct pool **pool)
{
    if (*pool)
        (*pool)->ops->close(*pool);
}

static int pool_open_record(const struct pool_record *record, struct pool **ret_pool, struct error *err)
{
    const struct pool_ops *ops = pool_kind(record->kind);
    if (!ops)
        return error_set(err, EOPNOTSUPP, "pools of kind '%s' are not known", record->kind);
    int r = ops->open(record->path, record->id, ret_pool, err);
    return r < 0 ? error_prefix(err, "pool '%s'", record->name) : 0;
}

int manager_pool_open(struct manager *m, const char *pool_id, struct pool **ret_pool, struct error *err)
{
    struct pool_record record;
    int r = catalogue_pool_find(m->catalogue, pool_id, &record, err);
    return r < 0 ? r : pool_open_record(&record, ret_pool, err);
}

int manager_pool_admit(struct manager *m, const struct pool_record *record, uint64_t more, struct error *err)
{
    CLEANUP_POOL struct pool *pool = NULL;
    uint64_t promised, volumes;
    struct pool_usage usage;
    int r = pool_open_record(record, &pool, err);
    if (r == 0)
        r = pool->ops->usage(pool, &usage, err);
    if (r == 0)
        r = catalogue_pool_promised(m->catalogue, record->id, &promised, &volumes, err);
    if (r < 0)
        return r;
    double limit = (double)usage.capacity * record->overprovision;
    if ((double)promised + (double)more <= limit)
        return 0;
    (void)error_set(err, ENOSPC, "pool '%s' may promise %.0f bytes, has promised %llu, and this needs %llu more",
                    record->name, limit, (unsigned long long)promised, (unsigned long long)more);
    return error_code(err, "overprovisioned");
}

static json_t *describe_pool(struct manager *m, const struct pool_record *record)
{
    uint64_t promised = 0, volumes = 0;
    (void)catalogue_pool_promised(m->catalogue, record->id, &promised, &volumes, NULL);
    json_t *json =
        json_pack("{s:s, s:s, s:s, s:s, s:f, s:I, s:I, s:I}", "id", record->id, "name", record->name, "kind",
                  record->kind, "path", record->path, "overprovision", record->overprovision, "promised",
                  (json_int_t)promised, "volumes", (json_int_t)volumes, "created", (json_int_t)record->created);
    CLEANUP_POOL struct pool *pool = NULL;
    struct pool_usage usage;
    struct error err = ERROR_INIT;
    int r = pool_open_record(record, &pool, &err);
    if (r == 0)
        r = pool->ops->usage(pool, &usage, &err);
    (void)json_object_set_new(json, "state", json_string(r < 0 ? "missing" : "ready"));
    if (r < 0) {
        (void)json_object_set_new(json, "error", json_string(err.message));
        return json;
    }
    (void)json_object_set_new(json, "capacity", json_integer((json_int_t)usage.capacity));
    (void)json_object_set_new(json, "available", json_integer((json_int_t)usage.available));
    (void)json_object_set_new(json, "used", json_integer((json_int_t)usage.used));
    return json;
}

static int pool_check_spec(const struct pool_spec *spec, const struct pool_ops **ret_ops, struct error *err)
{
    if (!spec->name || !catalogue_name_valid(spec->name))
        return error_set(err, EINVAL, "'%s' cannot be a pool's name", spec->name ? spec->name : "");
    const struct pool_ops *ops = pool_kind(spec->kind ? spec->kind : "dir");
    if (!ops)
        return error_set(err, EINVAL, "pools of kind '%s' are not known", spec->kind);
    if (!spec->path || spec->path[0] != '/' || strlen(spec->path) >= CATALOGUE_PATH_MAX)
        return error_set(err, EINVAL, "a pool needs an absolute path");
    if (spec->overprovision != 0 && !(spec->overprovision >= 1 && spec->overprovision <= OVERPROVISION_MAX))
        return error_set(err, EINVAL, "overprovision must lie between 1 and %.0f", OVERPROVISION_MAX);
    *ret_ops = ops;
    return 0;
}

int manager_pool_create(struct manager *m, const struct caller *caller, const struct pool_spec *spec, json_t **ret_pool,
                        bool *ret_existed, struct error *err)
{
    const struct pool_ops *ops = NULL;
    struct pool_record record;
    int r = caller_require(caller, CALLER_ADMIN, err);
    if (r == 0)
        r = pool_check_spec(spec, &ops, err);
    if (r < 0)
        return r;
    if (catalogue_pool_find(m->catalogue, spec->name, &record, NULL) == 0) {
        if (strcmp(record.path, spec->path) != 0 || strcmp(record.kind, ops->kind) != 0)
            return error_set(err, EEXIST, "there is another pool '%s', at '%s'", record.name, record.path);
        *ret_pool = describe_pool(m, &record);
        *ret_existed = true;
        return 0;
    }
    record = (struct pool_record){
        .overprovision = spec->overprovision != 0 ? spec->overprovision : OVERPROVISION_DEFAULT, .created = time(NULL)};
    (void)strcpy(record.name, spec->name);
    (void)strcpy(record.kind, ops->kind);
    (void)strcpy(record.path, spec->path);
    r = catalogue_id("pool-", record.id);
    if (r < 0)
        return error_sys(err, r, "new pool");
    r = ops->create(record.path, record.id, err);
    if (r < 0)
        return r;
    r = catalogue_pool_insert(m->catalogue, &record, err);
    if (r < 0) {
        CLEANUP_POOL struct pool *pool = NULL;
        if (pool_open_record(&record, &pool, NULL) == 0)
            (void)ops->remove(pool, NULL);
        return r;
    }
    event_emit(m, "pool.created", record.id, json_pack("{s:s}", "name", record.name));
    *ret_pool = describe_pool(m, &record);
    *ret_existed = false;
    return 0;
}

int manager_pool_delete(struct manager *m, const struct caller *caller, const char *name_or_id, struct error *err)
{
    struct pool_record record;
    int r = caller_require(caller, CALLER_ADMIN, err);
    if (r == 0)
        r = catalogue_pool_find(m->catalogue, name_or_id, &record, err);
    if (r < 0)
        return r;
    r = catalogue_pool_delete(m->catalogue, record.id, err);
    if (r == -EBUSY) {
        (void)error_set(err, EBUSY, "pool '%s' has volumes", record.name);
        (void)error_hint(err, "platter volume list --pool %s", record.name);
        return error_code(err, "pool-in-use");
    }
    if (r < 0)
        return r;
    CLEANUP_POOL struct pool *pool = NULL;
    if (pool_open_record(&record, &pool, NULL) == 0)
        (void)pool->ops->remove(pool, NULL); /* a pool that is missing keeps its marker */
    event_emit(m, "pool.deleted", record.id, json_pack("{s:s}", "name", record.name));
    return 0;
}

int manager_pool_get(struct manager *m, const char *name_or_id, json_t **ret_pool, struct error *err)
{
    struct pool_record record;
    int r = catalogue_pool_find(m->catalogue, name_or_id, &record, err);
    if (r == 0)
        *ret_pool = describe_pool(m, &record);
    return r;
}

int manager_pool_list(struct manager *m, json_t **ret_pools, struct error *err)
{
    CLEANUP_FREE struct pool_record *records = NULL;
    size_t count;
    int r = catalogue_pool_list(m->catalogue, &records, &count, err);
    if (r < 0)
        return r;
    json_t *pools = json_array();
    for (size_t i = 0; i < count; i++)
        (void)json_array_append_new(pools, describe_pool(m, &records[i]));
    *ret_pools = pools;
    return 0;
}
