/* SPDX-License-Identifier: Apache-2.0 */
/* The thread that waits for what nobody else waits for. */
#ifndef PLATTER_PROVISIONER_VOLUME_SUPERVISOR_H
#define PLATTER_PROVISIONER_VOLUME_SUPERVISOR_H

#include "provisioner/volume/manager.h"

/* A watched server's process ended: called on the supervisor's thread. */
void server_ended(struct manager *manager, int pidfd);

#endif
