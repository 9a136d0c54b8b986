/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keeping a detached volume's chain short although every layer of it is a snapshot's: what lies below the top is copied into one
 * layer of its own, on which the top then stands. The snapshots keep the chain that they are.
 */
#ifndef PLATTER_PROVISIONER_VOLUME_FLATTEN_H
#define PLATTER_PROVISIONER_VOLUME_FLATTEN_H

#include "provisioner/volume/lifecycle.h"

/* From so many layers on a chain is flattened when the volume is free; at BLK_LAYERS_MAX a snapshot does it first. */
#define FLATTEN_LAYERS 128

/* Does the volume have that many layers, `limit` or more? */
bool flatten_wanted(struct manager *manager, const struct volume_record *volume, size_t limit);

/* In a job of the detached volume: copy, and let the top stand on the copy. Killed or cancelled at any moment the chain is the
 * old one or the new one; a copy that nothing stands on is removed by the next merge. Again: begins anew. */
int flatten(struct job *job, struct error *err);

#endif
