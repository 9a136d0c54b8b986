/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The running platter-blk of an attachment: one connection to each, and word when one ends unexpectedly (its attachment
 * becomes "failed", with an event).
 */
#ifndef PLATTER_PROVISIONER_VOLUME_SERVER_H
#define PLATTER_PROVISIONER_VOLUME_SERVER_H

#include "provisioner/node/blk_client.h"
#include "provisioner/volume/manager.h"

/* The connection to the attachment's server: the one held, or a new one to a server that runs. -ENOENT: none runs.
 * Owned by the manager; used by the one job of the volume only. */
int server_connect(struct manager *manager, const char *attachment_id, struct blk_client **ret_client,
                   struct error *err);

/* The same, starting a server when none runs. */
int server_ensure(struct manager *manager, const char *attachment_id, struct blk_client **ret_client,
                  struct error *err);

/* From now on its end is a failure of the attachment / is expected. */
void server_watch(struct manager *manager, const char *attachment_id);
void server_unwatch(struct manager *manager, const char *attachment_id);

/* Close the image and end the server, by force if it does not answer; its socket is removed. Idempotent. The error of a
 * failed last flush is given, with the server gone all the same. */
int server_end(struct manager *manager, const char *attachment_id, struct error *err);

/* Drop every connection; the servers go on. */
void server_disconnect_all(struct manager *manager);

#endif
