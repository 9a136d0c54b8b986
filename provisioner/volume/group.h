/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside snapshot-group-create: its members. The job's data has "members", an array; what the steps of one volume's snapshot
 * keep in a job's data is kept in the member's object: "volume_id", "volume", "snapshot", "layer" (the new top), "consistency",
 * "freeze", and "writer", the attachment that writes ("" = none did when the job began). Undoing adds what became of the new
 * top: "kept" (it stays, for the server may write to it) or "unknown" (it stays with its snapshot, as "failed"); neither: it goes.
 */
#ifndef PLATTER_PROVISIONER_VOLUME_GROUP_H
#define PLATTER_PROVISIONER_VOLUME_GROUP_H

#include "provisioner/volume/snapshot.h"

size_t group_count(const struct job *job);
/* Member `index` as a job of its volume, for functions that are given one. Owns nothing; never saved (group's job_save
 * saves what was set). */
struct job group_member_job(struct job *job, size_t index);
int group_member_snapshot(const struct job *member, struct snapshot_record *ret_snapshot, struct error *err);

/* The step in which the moment of the snapshots is (group_switch.c), and its undo: thaws. */
int group_switch(struct job *job, struct error *err);
int group_thaw(struct job *job, struct error *err);

/* Undo of one member's records: back to the top of before, or on to the new one if its server may have it. */
int group_settle(struct job *job, struct job *member, struct error *err);

#endif
