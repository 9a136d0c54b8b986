/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the lifecycle: what the kinds of jobs share. */
#ifndef PLATTER_PROVISIONER_VOLUME_LIFECYCLE_H
#define PLATTER_PROVISIONER_VOLUME_LIFECYCLE_H

#include "provisioner/volume/job.h"

#define VOLUME_ALIGN 4096
#define VOLUME_SIZE_MAX (64 * TIB)

/* `size` rounded up to VOLUME_ALIGN; -EINVAL for 0 and for more than VOLUME_SIZE_MAX. */
int volume_size(uint64_t size, uint64_t *ret_size, struct error *err);
bool filesystem_known(const char *filesystem); /* "ext4", "xfs", "none" */

/* The pool by name or id; NULL = the only one there is. */
int volume_pool(struct manager *manager, const char *name_or_id, struct pool_record *ret_pool, struct error *err);

/* Is there a volume of this name already? -ENOENT: no. 0: one that was asked for with the same spec; the ticket is
 * filled. -EEXIST: another one. */
int volume_existing(struct manager *manager, const char *name, const char *spec, struct ticket *ret_ticket,
                    struct error *err);

/* Within the transaction of a request: -EBUSY (code "volume-in-use", with holder and hint) when an attachment forbids
 * what is asked for. `writing_only`: read-only attachments are no hindrance. Those of snapshots never are. */
int volume_check_free(struct manager *manager, const struct volume_record *volume, bool writing_only,
                      struct error *err);
/* The same for whatever must have all of the volume's layers alone: an attached snapshot is a hindrance, too. */
int volume_check_unused(struct manager *manager, const struct volume_record *volume, struct error *err);
/* Before a volume's data goes: -EBUSY when a program that platter does not know has its image open. */
int volume_check_exclusive(struct job *job, struct error *err);
/* -EBUSY (code "job-running") when a job on the volume has not ended; -EINVAL unless it is "available". A merge is not
 * waited for but cancelled: it goes on when the volume is free again. */
int volume_check_ready(struct manager *manager, const struct volume_record *volume, struct error *err);

/* Commit when r is 0, else roll back; the result of the whole. */
int transaction_end(struct manager *manager, int r, struct error *err);

/* Commit the rows of an intent that `insert` writes, with the job, and start it. */
int job_submit(struct job **job, int (*insert)(struct job *job, void *arg, struct error *err), void *arg,
               struct ticket *ret_ticket, struct error *err);

/* The record of the job's volume (as it was at the snapshot that the job's data names as "view") or attachment. */
int job_volume(const struct job *job, struct volume_record *ret_record, struct error *err);
int job_attachment(const struct job *job, struct attachment_record *ret_record, struct error *err);
/* A target as it is recorded: without doubled and trailing slashes. */
void target_normal(const char *target, char *normal, size_t size);
int attachment_find(struct manager *manager, const char *id_or_target, struct attachment_record *ret_record,
                    struct error *err);

/* The job that makes a detached volume smaller (shrink.c). */
int volume_shrink_start(struct manager *manager, const struct caller *caller, const struct volume_record *volume,
                        uint64_t size, bool discard_data, struct ticket *ret_ticket, struct error *err);

/* The job that applies a snapshot's export to a volume (import_onto.c). */
int import_onto_start(struct manager *manager, const struct caller *caller, const struct import_spec *spec,
                      struct ticket *ret_ticket, struct error *err);
/* A file that an import reads, with the caller's rights and a reader's lock. */
int import_source_open(const struct rights *rights, const char *path, int *ret_fd, struct error *err);

/* Steps that several kinds have. */
int step_sidecar(struct job *job, struct error *err);
int undo_sidecar(struct job *job, struct error *err);
/* Make the image file of layer `id` anew: exclusive, empty. A left-over of an earlier run of this job is replaced. */
int layer_file_create(struct manager *manager, const struct layer_record *layer, int *ret_fd, struct error *err);
int layer_file_delete(struct manager *manager, const struct layer_record *layer, struct error *err);
/* The files of all layers that the volume made and that no other volume stands on. */
int undo_layer_files(struct job *job, struct error *err);

/* abandon for jobs that make a volume: its rows go, or it stays as "failed" when its files could not be removed. */
int abandon_new_volume(struct job *job, const struct error *cause, bool undone, struct error *err);
/* finish for them: "available", with an event. */
int finish_new_volume(struct job *job, struct error *err);

/* "pause" or "fail", by the volume's record. */
const char *volume_on_no_space(const struct volume_record *volume);

#endif
