/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the lifecycle: what changed from one snapshot to another. */
#ifndef PLATTER_PROVISIONER_VOLUME_CHANGED_H
#define PLATTER_PROVISIONER_VOLUME_CHANGED_H

#include "provisioner/volume/chain.h"
#include "provisioner/volume/snapshot.h"

/* The snapshot that `since` names: one of `volume` by name or id, or VOLUME@SNAPSHOT of any (what a clone was made of). */
int changed_since_find(struct manager *manager, const struct volume_record *volume, const char *since,
                       struct snapshot_record *ret_base, struct error *err);

/* How many layers of the chain (top first) lie above the snapshot's; 0 = it is the top. -EINVAL, code "not-an-ancestor";
 * -EOPNOTSUPP when the snapshot is a reflink. */
int changed_layers(struct manager *manager, const struct layer_record *chain, size_t count,
                   const struct snapshot_record *base, unsigned *ret_layers, struct error *err);

#endif
