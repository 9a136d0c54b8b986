// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <string.h>

#include "provisioner/api/body.h"
#include "provisioner/api/handlers.h"

#define LIST_LIMIT_DEFAULT 200
#define LIST_LIMIT_MAX 1000

#define MEMBERS_END                                                                                                    \
    {                                                                                                                  \
        NULL, MEMBER_TEXT, 0, false, NULL, 0                                                                           \
    }

int handle_snapshot_list(struct request *request, struct error *err)
{
    uint64_t limit = 0;
    json_t *snapshots = NULL;
    int r = request_query_number(request, "limit", LIST_LIMIT_MAX, LIST_LIMIT_DEFAULT, &limit, err);
    if (r == 0 && limit == 0)
        r = error_set(err, EINVAL, "'limit' must be at least 1");
    if (r == 0)
        r = manager_snapshot_list(request->manager, request_query(request, "volume"), request_query(request, "after"),
                                  (unsigned)limit, &snapshots, err);
    if (r < 0)
        return r;
    size_t count = json_array_size(snapshots);
    const json_t *last = count == limit ? json_array_get(snapshots, count - 1) : NULL;
    json_t *next = json_incref(json_object_get(last, "id"));
    return request_answer(request, MHD_HTTP_OK, json_pack("{s:o, s:o*}", "snapshots", snapshots, "next", next), err);
}

/* A job's own result is a deletion's; of a creation the snapshot itself is shown. */
int handle_snapshot_create(struct request *request, struct error *err)
{
    struct spec {
        const char *name;
        bool freeze;
    } spec = {0};
    static const struct member members[] = {
        {"name", MEMBER_TEXT, offsetof(struct spec, name), true, NULL, 0},
        {"freeze", MEMBER_BOOL, offsetof(struct spec, freeze), false, NULL, 0},
        MEMBERS_END,
    };
    struct ticket ticket = {0};
    int r = body_read(request->body, members, &spec, err);
    if (r == 0)
        r = manager_snapshot_create(request->manager, &request->caller, spec.name, spec.freeze, &ticket, err);
    return r < 0 ? r : request_answer_ticket(request, MHD_HTTP_CREATED, &ticket, manager_snapshot_get_id);
}

int handle_snapshot_group_create(struct request *request, struct error *err)
{
    struct spec {
        json_t *names;
        bool freeze;
    } spec = {0};
    static const struct member members[] = {
        {"names", MEMBER_ARRAY, offsetof(struct spec, names), true, NULL, 0},
        {"freeze", MEMBER_BOOL, offsetof(struct spec, freeze), false, NULL, 0},
        MEMBERS_END,
    };
    const char *names[SNAPSHOT_GROUP_MAX];
    struct ticket ticket = {0};
    int r = body_read(request->body, members, &spec, err);
    if (r < 0)
        return r;
    size_t count = json_array_size(spec.names);
    for (size_t i = 0; i < count && i < SNAPSHOT_GROUP_MAX; i++) {
        names[i] = json_string_value(json_array_get(spec.names, i));
        if (!names[i])
            return error_set(err, EINVAL, "'names' must be an array of VOLUME@NAME");
    }
    r = manager_snapshot_group_create(request->manager, &request->caller, names, count, spec.freeze, &ticket, err);
    return r < 0 ? r : request_answer_ticket(request, MHD_HTTP_CREATED, &ticket, manager_snapshot_group_get);
}

int handle_snapshot_get(struct request *request, struct error *err)
{
    json_t *snapshot = NULL;
    int r = strchr(request->parameters[0], '@')
                ? manager_snapshot_get(request->manager, request->parameters[0], &snapshot, err)
                : manager_snapshot_get_id(request->manager, request->parameters[0], &snapshot, err);
    return r < 0 ? r : request_answer(request, MHD_HTTP_OK, snapshot, err);
}

int handle_snapshot_delete(struct request *request, struct error *err)
{
    struct ticket ticket = {0};
    int r = manager_snapshot_delete(request->manager, &request->caller, request->parameters[0], &ticket, err);
    return r < 0 ? r : request_answer_ticket(request, MHD_HTTP_OK, &ticket, manager_snapshot_get_id);
}

int handle_volume_clone(struct request *request, struct error *err)
{
    static const struct member members[] = {
        {"name", MEMBER_TEXT, offsetof(struct clone_spec, name), true, NULL, 0},
        {"snapshot", MEMBER_TEXT, offsetof(struct clone_spec, snapshot), true, NULL, 0},
        {"size", MEMBER_U64, offsetof(struct clone_spec, size), false, NULL, 0},
        MEMBERS_END,
    };
    struct clone_spec spec = {0};
    struct ticket ticket = {0};
    int r = body_read(request->body, members, &spec, err);
    if (r == 0)
        r = manager_volume_clone(request->manager, &request->caller, &spec, &ticket, err);
    return r < 0 ? r : request_answer_ticket(request, MHD_HTTP_CREATED, &ticket, manager_volume_get);
}

int handle_volume_restore(struct request *request, struct error *err)
{
    struct spec {
        const char *snapshot;
    } spec = {0};
    static const struct member members[] = {
        {"snapshot", MEMBER_TEXT, offsetof(struct spec, snapshot), true, NULL, 0},
        MEMBERS_END,
    };
    char name[512];
    struct ticket ticket = {0};
    int r = body_read(request->body, members, &spec, err);
    if (r < 0)
        return r;
    (void)snprintf(name, sizeof(name), "%.200s@%.200s", request->parameters[0], spec.snapshot);
    r = manager_volume_restore(request->manager, &request->caller, name, &ticket, err);
    return r < 0 ? r : request_answer_ticket(request, MHD_HTTP_OK, &ticket, manager_volume_get);
}
