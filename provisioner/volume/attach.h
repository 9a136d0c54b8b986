/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the lifecycle: the steps of attaching and detaching.
 *
 * What the steps find out ("facts": device, canonical target, server pid ...) is in the job's data while it runs and
 * in the attachment's data afterwards; a detach job begins with a copy of the latter. So the undo of an attach step
 * and the step of a detach are the same function.
 */
#ifndef PLATTER_PROVISIONER_VOLUME_ATTACH_H
#define PLATTER_PROVISIONER_VOLUME_ATTACH_H

#include "provisioner/volume/lifecycle.h"

/* Facts that stay with the attachment. */
extern const char *const attachment_facts[];

/* "platter/ATTACHMENT", the label of its loop device. */
void attach_label(const struct job *job, char *label, size_t size);
/* The attachment's data: the facts of the job, as text. The caller frees. */
char *attach_facts_text(const struct job *job);

int step_server(struct job *job, struct error *err);
int undo_server(struct job *job, struct error *err);
int step_end_waits(struct job *job, struct error *err);
int undo_end_waits(struct job *job, struct error *err);
int step_fuse(struct job *job, struct error *err);
int undo_fuse(struct job *job, struct error *err);
int step_loop(struct job *job, struct error *err);
int undo_loop(struct job *job, struct error *err);

int step_target(struct job *job, struct error *err);
int step_format(struct job *job, struct error *err);
/* A volume that grew while its file system could not: ext4 follows before it is mounted, xfs after. */
int step_fit(struct job *job, struct error *err);
int step_grow(struct job *job, struct error *err);
int step_mount(struct job *job, struct error *err);
int undo_mount(struct job *job, struct error *err); /* by force: for attachments that never became usable */
int step_unmount(struct job *job, struct error *err);

int step_listen(struct job *job, struct error *err);
int undo_listen(struct job *job, struct error *err);
int step_plug(struct job *job, struct error *err);
int step_unplug(struct job *job, struct error *err);
/* For an undo: without the guest's consent being waited for, if it takes too long. */
int undo_plug(struct job *job, struct error *err);
/* The VM's instructions: {arguments, qmp, libvirt, note}. */
json_t *vm_instructions(const struct job *job, const struct attachment_record *attachment,
                        const struct volume_record *volume);

int finish_attach(struct job *job, struct error *err);
int abandon_attach(struct job *job, const struct error *cause, bool undone, struct error *err);

#endif
