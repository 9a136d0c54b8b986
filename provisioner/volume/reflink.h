/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the lifecycle: raw layers that share their blocks with another raw layer, where the pool's file system can. Such a
 * layer is a whole image: it has no parent, and nothing is ever merged with it.
 *
 * A job that makes one knows it by the name "source" in its data, the layer that is shared; "layer" is the new one.
 */
#ifndef PLATTER_PROVISIONER_VOLUME_REFLINK_H
#define PLATTER_PROVISIONER_VOLUME_REFLINK_H

#include "provisioner/volume/lifecycle.h"

/* Is `layer` a raw image alone, in a pool whose file system reflinks? May write two small files there: not in a transaction. */
int reflink_possible(struct manager *manager, const char *layer, bool *ret_possible, struct error *err);

/* Is its file in so few pieces that a reflink of it does not hold writers up for long? Looks at all of them. */
int reflink_quick(struct manager *manager, const char *layer, bool *ret_quick, struct error *err);

/* A new raw layer of `volume`. `source` ("" = none) is its parent only until reflink_release: that keeps its file while it
 * is needed. */
int reflink_fill(const struct volume_record *volume, const char *source, uint64_t size, struct layer_record *ret_layer,
                 struct error *err);

/* The job's new layer becomes what its source is. `locked`: refuse (-EBUSY) when a program outside writes to the source. */
int reflink_copy(struct job *job, bool locked, struct error *err);
/* In a transaction: it stands for itself from now on. */
int reflink_release(const struct job *job, struct error *err);

/* A layer that no snapshot, no volume and no other layer needs any more goes, with its file; any other one stays. */
int layer_drop_unneeded(struct job *job, const char *layer, struct error *err);

#endif
