// SPDX-License-Identifier: Apache-2.0
#include "provisioner/api/caller.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/checked.h"

#define PEER_GROUPS_MAX 1024 /* of one with more, the kernel tells none: fewer rights, never more */

static bool in_group(const struct caller *caller, gid_t gid)
{
    if (caller->gid == gid)
        return true;
    for (size_t i = 0; i < caller->group_count; i++) {
        if (caller->groups[i] == gid)
            return true;
    }
    return false;
}

static bool in_list(const struct caller *caller, const struct config_list *list)
{
    for (size_t i = 0; i < list->uid_count; i++) {
        if (list->uids[i] == caller->uid)
            return true;
    }
    for (size_t i = 0; i < list->gid_count; i++) {
        if (in_group(caller, list->gids[i]))
            return true;
    }
    return false;
}

int caller_identify(int fd, const struct config *config, struct caller *ret_caller, struct error *err)
{
    struct caller caller = {.role = CALLER_VIEWER};
    struct ucred cred;
    socklen_t length = sizeof(cred);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &length) < 0)
        return error_sys(err, EACCES, "who is asking cannot be told");
    caller.uid = cred.uid;
    caller.gid = cred.gid;
    caller.pid = cred.pid;
    gid_t groups[PEER_GROUPS_MAX];
    length = sizeof(groups);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &length) == 0) {
        caller.group_count = MIN(length / sizeof(gid_t), (size_t)CALLER_GROUPS_MAX);
        memcpy(caller.groups, groups, caller.group_count * sizeof(gid_t));
    }
    int r = 0;
    if (caller.uid == 0 || caller.uid == geteuid() || in_list(&caller, &config->admins))
        caller.role = CALLER_ADMIN;
    else if (in_list(&caller, &config->operators) ||
             (config->group_id != (gid_t)-1 && in_group(&caller, config->group_id)))
        caller.role = CALLER_OPERATOR;
    else if (!in_list(&caller, &config->viewers))
        r = error_set(err, EACCES, "user %u has no role here", caller.uid);
    *ret_caller = caller;
    return r;
}
