/* SPDX-License-Identifier: Apache-2.0 */
/* Who is at the other end of a connection, by what the kernel says about the socket. */
#ifndef PLATTER_API_CALLER_H
#define PLATTER_API_CALLER_H

#include "common/config.h"
#include "provisioner/volume/volume.h"

/*
 * Credentials from SO_PEERCRED and SO_PEERGROUPS, and the role that the configuration gives them: root and the
 * daemon's own user are admins; the lists come next; members of the socket's group are operators.
 * -EACCES when the caller has no role at all; the credentials are filled all the same.
 */
int caller_identify(int fd, const struct config *config, struct caller *ret_caller, struct error *err);

#endif
