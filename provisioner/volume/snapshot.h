/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the lifecycle: snapshots. A snapshot is a frozen layer with a name; making one puts a new, empty layer above the
 * volume's top. "VOLUME@SNAPSHOT" names one wherever a volume that is only read is asked for.
 */
#ifndef PLATTER_PROVISIONER_VOLUME_SNAPSHOT_H
#define PLATTER_PROVISIONER_VOLUME_SNAPSHOT_H

#include "provisioner/volume/lifecycle.h"

/* `name` is "VOLUME@SNAPSHOT". */
int snapshot_find(struct manager *manager, const char *name, struct volume_record *ret_volume,
                  struct snapshot_record *ret_snapshot, struct error *err);
/* A volume, or with an '@' a snapshot as a view: the volume's record as it was then. ret_snapshot->id is "" for a volume. */
int volume_or_snapshot_find(struct manager *manager, const char *name, struct volume_record *ret_volume,
                            struct snapshot_record *ret_snapshot, struct error *err);
/* Let `volume` look as it did at the snapshot. Such a record is never written. */
void snapshot_view(struct volume_record *volume, const struct snapshot_record *snapshot);

/* A new layer of `volume` over `parent`: qcow2 with extended L2 entries, so that a first write of 4 KiB copies no more. */
int overlay_fill(const struct volume_record *volume, const struct layer_record *parent, uint64_t size,
                 struct layer_record *ret_layer, struct error *err);
/* May a volume stand on `parent` with one more layer, or is the chain too long (-E2BIG, code "chain-too-long")? */
int overlay_check(struct manager *manager, const char *parent_id, struct error *err);

/* Steps for the layer that the job's data names as "layer". */
int step_overlay_file(struct job *job, struct error *err);
int undo_overlay_file(struct job *job, struct error *err);
int step_overlay_image(struct job *job, struct error *err);

/* Layers that nothing needs any more go, those that only their child needs are merged with it: a job of its own, started when
 * there is something to do and the volume is free. Any thread, outside of transactions. */
void merge_schedule(struct manager *manager, const char *volume_id);
/* At start: of every volume. */
void merge_schedule_all(struct manager *manager);
/* Cancel the merge that is the volume's newest job; false: there is none. */
bool merge_cancel(struct manager *manager, const char *volume_id);
/* A job of `volume_id` needs these layers: merges by the other volumes that own some of them are ended, and waited for.
 * True when there were any. */
bool merge_give_way(struct manager *manager, const struct layer_record *layers, size_t count, const char *volume_id);

#endif
