/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Merging two frozen layers below the live top of an attached volume, while its block server reads both.
 *
 * A worker writes `upper` into `lower`. What it changes there is covered by `upper`, so the server sees nothing of it, as long as
 * no cluster of `lower` that is covered only in part moves: clusters move that are compressed or shared, which only images
 * have that were imported as they are. Then the server is given the chain without `upper`.
 *
 * Locks: the server's own lock on `lower` would keep the worker from it. So the server is first given the same chain anew, with
 * a lock on `lower` that suffers a writer, while platterd holds a reader's lock, and makes it a writer's. Programs that are
 * not platter's find the file locked at every moment.
 */
#ifndef PLATTER_PROVISIONER_VOLUME_MERGE_ATTACHED_H
#define PLATTER_PROVISIONER_VOLUME_MERGE_ATTACHED_H

#include "provisioner/volume/lifecycle.h"

/* How may the volume's layers be merged now? 0 with `ret_id` "": it is not in use; 0 with the id of its one attachment, which
 * has a block server: below the top. -EBUSY: not now. */
int merge_attachment(struct manager *manager, const struct volume_record *volume, char ret_id[ID_MAX],
                     struct error *err);
/* May this pair of the attached volume be merged under its server? */
bool merge_attached_fits(const struct volume_record *volume, const struct layer_record *lower,
                         const struct layer_record *upper);

/* Let the server suffer that `lower` is written to, and make the reader's lock of `lower_fd` (its file, opened for writing) a
 * writer's. Remembered in the job until merge_attached_switch or merge_attached_restore. -ESTALE: the server has ended. */
int merge_attached_share(struct job *job, const char *attachment_id, const struct layer_record *lower, int lower_fd,
                         struct error *err);
/* `lower` holds all of `upper` durably: the server lets go of `upper`. One that has ended needs not be told. */
int merge_attached_switch(struct job *job, const struct layer_record *upper, struct error *err);
/* The server's chain as the catalogue has it, with its usual locks: after a merge that has not come to its end. */
void merge_attached_restore(struct job *job);

#endif
