/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the lifecycle: snapshots. A snapshot is a frozen layer with a name; making one puts a new, empty layer above the
 * volume's top. "VOLUME@SNAPSHOT" names one wherever a volume that is only read is asked for.
 */
#ifndef PLATTER_PROVISIONER_VOLUME_SNAPSHOT_H
#define PLATTER_PROVISIONER_VOLUME_SNAPSHOT_H

#include <errno.h>
#include <sys/types.h>

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

/* ---- what making one snapshot and making those of a group have in common -------------------------------------- */

struct snapshot_intent {
    struct layer_record layer; /* the new top; by reflink: the snapshot's own */
    struct snapshot_record snapshot;
    bool reflink; /* a raw volume's, where the pool can */
    bool quick;   /* ... and so fast that a writer may wait for it */
};

/* Id, own name, state and time of a new snapshot `name` ("VOLUME@SNAPSHOT"). */
int snapshot_name(const char *name, const struct volume_record *volume, struct snapshot_intent *intent,
                  struct error *err);
/* The rest of the intent and its rows, within the transaction of the request; the job's data gets "layer" and
 * "consistency". Data: "freeze". An insert function of job_submit. */
int snapshot_insert(struct job *job, void *intent, struct error *err);
/* A step: room for one more layer. Only a volume without a writer comes with a chain that is too long. */
int snapshot_room(struct job *job, struct error *err);
/* Make `top` the volume's top, which freezes or thaws the layer `other` below it. */
int snapshot_change_top(struct job *job, const char *top, const char *other, bool frozen, struct error *err);
/* The attachment that writes; -ENOENT: none. attachment_record_done it. */
int snapshot_writer(struct job *job, struct attachment_record *ret, struct error *err);
/* The new top (data: "layer") opened and locked, for the block server. */
int snapshot_open_top(struct job *job, struct layer_record *ret_layer, int *ret_fd, struct error *err);
/* Has a server that did not answer, but gave `r`, done what it was asked for? */
static inline bool snapshot_unknown(int r)
{
    return r == -EPIPE || r == -ETIMEDOUT || r == -EBADMSG || r == -ECONNRESET;
}

struct snapshot_mount {
    char *path;
    dev_t rdev;
};
/* Where the attachment's file system is mounted; path NULL: it is not. The caller frees path. */
void snapshot_find_mount(const struct attachment_record *a, struct snapshot_mount *ret);

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
