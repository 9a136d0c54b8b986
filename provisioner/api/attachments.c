// SPDX-License-Identifier: Apache-2.0
#include "provisioner/api/body.h"
#include "provisioner/api/handlers.h"

int handle_attachment_list(struct request *request, struct error *err)
{
    json_t *attachments = NULL;
    int r = manager_attachment_list(request->manager, request_query(request, "volume"), &attachments, err);
    if (r < 0)
        return r;
    return request_answer(request, MHD_HTTP_OK, json_pack("{s:o}", "attachments", attachments), err);
}

int handle_attachment_create(struct request *request, struct error *err)
{
    static const struct member members[] = {
        {"volume", MEMBER_TEXT, offsetof(struct attach_spec, volume), true, NULL, 0},
        {"kind", MEMBER_TEXT, offsetof(struct attach_spec, kind), true, "mount|device|vm", 0},
        {"target", MEMBER_TEXT, offsetof(struct attach_spec, target), false, NULL, 0},
        {"read_only", MEMBER_BOOL, offsetof(struct attach_spec, read_only), false, NULL, 0},
        {"filesystem", MEMBER_TEXT, offsetof(struct attach_spec, filesystem), false, "ext4|xfs", 0},
        {"mount_options", MEMBER_TEXT, offsetof(struct attach_spec, mount_options), false, NULL, 0},
        {"via", MEMBER_TEXT, offsetof(struct attach_spec, via), false, "auto|fuse|loop", 0},
        {"export", MEMBER_TEXT, offsetof(struct attach_spec, export), false, "vhost-user-blk|nbd", 0},
        {"queues", MEMBER_U32, offsetof(struct attach_spec, queues), false, NULL, 16},
        {"qmp", MEMBER_TEXT, offsetof(struct attach_spec, qmp), false, NULL, 0},
        {"holder", MEMBER_TEXT, offsetof(struct attach_spec, holder), false, NULL, 63},
        {NULL, MEMBER_TEXT, 0, false, NULL, 0},
    };
    struct attach_spec spec = {0};
    struct ticket ticket = {0};
    int r = body_read(request->body, members, &spec, err);
    if (r == 0)
        r = manager_attach(request->manager, &request->caller, &spec, &ticket, err);
    return r < 0 ? r : request_answer_ticket(request, MHD_HTTP_CREATED, &ticket, manager_attachment_get);
}

int handle_attachment_get(struct request *request, struct error *err)
{
    json_t *attachment = NULL;
    int r = manager_attachment_get(request->manager, request->parameters[0], &attachment, err);
    return r < 0 ? r : request_answer(request, MHD_HTTP_OK, attachment, err);
}

int handle_attachment_delete(struct request *request, struct error *err)
{
    struct ticket ticket = {0};
    int r = manager_detach(request->manager, &request->caller, request->parameters[0], &ticket, err);
    return r < 0 ? r : request_answer_ticket(request, MHD_HTTP_OK, &ticket, manager_attachment_get);
}
