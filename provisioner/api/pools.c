// SPDX-License-Identifier: Apache-2.0
#include "provisioner/api/body.h"
#include "provisioner/api/handlers.h"

static json_t *wrapped(const char *name, json_t *list)
{
    return json_pack("{s:o}", name, list);
}

int handle_pool_list(struct request *request, struct error *err)
{
    json_t *pools = NULL;
    int r = manager_pool_list(request->manager, &pools, err);
    return r < 0 ? r : request_answer(request, MHD_HTTP_OK, wrapped("pools", pools), err);
}

int handle_pool_create(struct request *request, struct error *err)
{
    static const struct member members[] = {
        {"name", MEMBER_TEXT, offsetof(struct pool_spec, name), true, NULL, 0},
        {"kind", MEMBER_TEXT, offsetof(struct pool_spec, kind), true, "dir", 0},
        {"path", MEMBER_TEXT, offsetof(struct pool_spec, path), true, NULL, 0},
        {"overprovision", MEMBER_REAL, offsetof(struct pool_spec, overprovision), false, NULL, 0},
        {NULL, MEMBER_TEXT, 0, false, NULL, 0},
    };
    struct pool_spec spec = {0};
    json_t *pool = NULL;
    bool existed = false;
    int r = body_read(request->body, members, &spec, err);
    if (r == 0)
        r = manager_pool_create(request->manager, &request->caller, &spec, &pool, &existed, err);
    return r < 0 ? r : request_answer(request, existed ? MHD_HTTP_OK : MHD_HTTP_CREATED, pool, err);
}

int handle_pool_get(struct request *request, struct error *err)
{
    json_t *pool = NULL;
    int r = manager_pool_get(request->manager, request->parameters[0], &pool, err);
    return r < 0 ? r : request_answer(request, MHD_HTTP_OK, pool, err);
}

int handle_pool_delete(struct request *request, struct error *err)
{
    int r = manager_pool_delete(request->manager, &request->caller, request->parameters[0], err);
    return r < 0 ? r : request_answer(request, MHD_HTTP_OK, json_object(), err);
}
