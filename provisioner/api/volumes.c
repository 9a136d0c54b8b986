// SPDX-License-Identifier: Apache-2.0
#include <errno.h>

#include "provisioner/api/body.h"
#include "provisioner/api/handlers.h"

#define LIST_LIMIT_DEFAULT 200
#define LIST_LIMIT_MAX 1000

#define MEMBERS_END                                                                                                    \
    {                                                                                                                  \
        NULL, MEMBER_TEXT, 0, false, NULL, 0                                                                           \
    }

int handle_volume_list(struct request *request, struct error *err)
{
    uint64_t limit = 0;
    int r = request_query_number(request, "limit", LIST_LIMIT_MAX, LIST_LIMIT_DEFAULT, &limit, err);
    if (r == 0 && limit == 0)
        r = error_set(err, EINVAL, "'limit' must be at least 1");
    json_t *volumes = NULL;
    if (r == 0)
        r = manager_volume_list(request->manager, request_query(request, "pool"), request_query(request, "after"),
                                (unsigned)limit, &volumes, err);
    if (r < 0)
        return r;
    size_t count = json_array_size(volumes);
    const json_t *last = count == limit ? json_array_get(volumes, count - 1) : NULL;
    json_t *next = json_incref(json_object_get(last, "name"));
    return request_answer(request, MHD_HTTP_OK, json_pack("{s:o, s:o*}", "volumes", volumes, "next", next), err);
}

int handle_volume_create(struct request *request, struct error *err)
{
    static const struct member members[] = {
        {"name", MEMBER_TEXT, offsetof(struct volume_spec, name), true, NULL, 0},
        {"pool", MEMBER_TEXT, offsetof(struct volume_spec, pool), false, NULL, 0},
        {"size", MEMBER_U64, offsetof(struct volume_spec, size), true, NULL, 0},
        {"format", MEMBER_TEXT, offsetof(struct volume_spec, format), false, "qcow2|raw", 0},
        {"cluster_size", MEMBER_U32, offsetof(struct volume_spec, cluster_size), false, NULL, 0},
        {"version", MEMBER_U32, offsetof(struct volume_spec, version), false, NULL, 0},
        {"extended_l2", MEMBER_BOOL, offsetof(struct volume_spec, extended_l2), false, NULL, 0},
        {"compression", MEMBER_TEXT, offsetof(struct volume_spec, compression), false, "zlib|zstd", 0},
        {"refcount_bits", MEMBER_U32, offsetof(struct volume_spec, refcount_bits), false, NULL, 64},
        {"preallocate", MEMBER_BOOL, offsetof(struct volume_spec, preallocate), false, NULL, 0},
        {"on_no_space", MEMBER_TEXT, offsetof(struct volume_spec, on_no_space), false, "pause|fail", 0},
        {"filesystem", MEMBER_TEXT, offsetof(struct volume_spec, filesystem), false, "ext4|xfs|none", 0},
        MEMBERS_END,
    };
    struct volume_spec spec = {0};
    struct ticket ticket = {0};
    int r = body_read(request->body, members, &spec, err);
    if (r == 0)
        r = manager_volume_create(request->manager, &request->caller, &spec, &ticket, err);
    return r < 0 ? r : request_answer_ticket(request, MHD_HTTP_CREATED, &ticket, manager_volume_get);
}

struct import_request {
    struct import_spec spec;
    const char *source, *source_format;
    json_t *parents;
};

static int read_parents(struct import_request *import, struct error *err)
{
    static const struct member members[] = {
        {"path", MEMBER_TEXT, offsetof(struct import_layer, path), true, NULL, 0},
        {"format", MEMBER_TEXT, offsetof(struct import_layer, format), true, "qcow2|raw", 0},
        MEMBERS_END,
    };
    import->spec.layers[0] = (struct import_layer){import->source, import->source_format};
    import->spec.layer_count = 1;
    size_t index = 0;
    json_t *parent;
    json_array_foreach (import->parents, index, parent) {
        if (import->spec.layer_count == IMPORT_LAYERS_MAX)
            return error_set(err, EINVAL, "'parents' may name at most %d files", IMPORT_LAYERS_MAX - 1);
        int r = body_read(parent, members, &import->spec.layers[import->spec.layer_count++], err);
        if (r < 0)
            return err ? error_prefix(err, "parents[%zu]", index) : r;
    }
    return 0;
}

int handle_volume_import(struct request *request, struct error *err)
{
    static const struct member members[] = {
        {"name", MEMBER_TEXT, offsetof(struct import_request, spec.name), true, NULL, 0},
        {"pool", MEMBER_TEXT, offsetof(struct import_request, spec.pool), false, NULL, 0},
        {"source", MEMBER_TEXT, offsetof(struct import_request, source), true, NULL, 0},
        {"source_format", MEMBER_TEXT, offsetof(struct import_request, source_format), true, "qcow2|raw", 0},
        {"format", MEMBER_TEXT, offsetof(struct import_request, spec.format), false, "qcow2|raw", 0},
        {"parents", MEMBER_ARRAY, offsetof(struct import_request, parents), false, NULL, 0},
        {"onto", MEMBER_BOOL, offsetof(struct import_request, spec.onto), false, NULL, 0},
        {"preserve", MEMBER_BOOL, offsetof(struct import_request, spec.preserve), false, NULL, 0},
        {"filesystem", MEMBER_TEXT, offsetof(struct import_request, spec.filesystem), false, "ext4|xfs|none", 0},
        MEMBERS_END,
    };
    struct import_request import = {0};
    struct ticket ticket = {0};
    int r = body_read(request->body, members, &import, err);
    if (r == 0)
        r = read_parents(&import, err);
    if (r == 0)
        r = manager_volume_import(request->manager, &request->caller, &import.spec, &ticket, err);
    return r < 0 ? r : request_answer_ticket(request, MHD_HTTP_CREATED, &ticket, manager_volume_get);
}

int handle_volume_export(struct request *request, struct error *err)
{
    static const struct member members[] = {
        {"target", MEMBER_TEXT, offsetof(struct export_spec, target), true, NULL, 0},
        {"format", MEMBER_TEXT, offsetof(struct export_spec, format), false, "qcow2|raw", 0},
        {"since", MEMBER_TEXT, offsetof(struct export_spec, since), false, NULL, 0},
        MEMBERS_END,
    };
    struct export_spec spec = {.volume = request->parameters[0]};
    struct ticket ticket = {0};
    int r = body_read(request->body, members, &spec, err);
    if (r == 0)
        r = manager_volume_export(request->manager, &request->caller, &spec, &ticket, err);
    return r < 0 ? r : request_answer_ticket(request, MHD_HTTP_CREATED, &ticket, manager_volume_get);
}

int handle_volume_get(struct request *request, struct error *err)
{
    json_t *volume = NULL;
    int r = manager_volume_get(request->manager, request->parameters[0], &volume, err);
    return r < 0 ? r : request_answer(request, MHD_HTTP_OK, volume, err);
}

int handle_volume_resize(struct request *request, struct error *err)
{
    static const struct member members[] = {
        {"size", MEMBER_U64, offsetof(struct resize_spec, size), true, NULL, 0},
        {"shrink", MEMBER_BOOL, offsetof(struct resize_spec, shrink), false, NULL, 0},
        {"discard_data", MEMBER_BOOL, offsetof(struct resize_spec, discard_data), false, NULL, 0},
        MEMBERS_END,
    };
    struct resize_spec spec = {.volume = request->parameters[0]};
    struct ticket ticket = {0};
    int r = body_read(request->body, members, &spec, err);
    if (r == 0)
        r = manager_volume_resize(request->manager, &request->caller, &spec, &ticket, err);
    return r < 0 ? r : request_answer_ticket(request, MHD_HTTP_OK, &ticket, manager_volume_get);
}

int handle_volume_check(struct request *request, struct error *err)
{
    struct check {
        bool repair;
    } check = {0};
    static const struct member members[] = {
        {"repair", MEMBER_BOOL, offsetof(struct check, repair), false, NULL, 0},
        MEMBERS_END,
    };
    struct ticket ticket = {0};
    int r = body_read(request->body, members, &check, err);
    if (r == 0)
        r = manager_volume_check(request->manager, &request->caller, request->parameters[0], check.repair, &ticket,
                                 err);
    return r < 0 ? r : request_answer_ticket(request, MHD_HTTP_OK, &ticket, manager_volume_get);
}

int handle_volume_compact(struct request *request, struct error *err)
{
    struct ticket ticket = {0};
    int r = manager_volume_compact(request->manager, &request->caller, request->parameters[0], &ticket, err);
    return r < 0 ? r : request_answer_ticket(request, MHD_HTTP_OK, &ticket, manager_volume_get);
}

int handle_volume_delete(struct request *request, struct error *err)
{
    struct ticket ticket = {0};
    uint64_t snapshots = 0;
    int r = request_query_number(request, "snapshots", 1, 0, &snapshots, err);
    if (r == 0)
        r = manager_volume_delete(request->manager, &request->caller, request->parameters[0], snapshots != 0, &ticket,
                                  err);
    return r < 0 ? r : request_answer_ticket(request, MHD_HTTP_OK, &ticket, manager_volume_get);
}
