/* SPDX-License-Identifier: Apache-2.0 */
/* The layer's control operations that have a file of their own; qcow2.c puts them into its table (layer.h says what each
 * must do). All run on the control thread and block. */
#ifndef PLATTER_FORMAT_QCOW2_CONTROL_H
#define PLATTER_FORMAT_QCOW2_CONTROL_H

#include "backends/format/qcow2/qcow2.h"

int qcow2_create(struct io_file *file, const struct image_create_options *options, struct error *err);
int qcow2_probe(struct io_file *file, struct image_info *ret_info, struct error *err);
int qcow2_resize(struct layer *layer, uint64_t size, struct error *err);
int qcow2_check(struct io_file *file, const struct image_check_options *options, struct image_check *ret_check,
                struct error *err);

/* Set what follows from q->header: cluster and entry sizes, the layer's size. */
void qcow2_derive(struct qcow2 *q);

/* At a writable open, before keeper and allocator: make the reference counts of a dirty image what its tables say, then
 * clear the dirty bit, all durable. q->refcounts (replaced), q->l1 and the snapshot bounds must be ready. Code "needs-repair" where
 * the tables themselves are damaged, or hold what we cannot follow. */
int qcow2_rebuild(struct qcow2 *q, struct error *err);

/* freeze.c */
int qcow2_freeze(struct layer *layer, struct error *err);
void qcow2_retire(struct layer *layer);
bool qcow2_is_empty(const struct layer *layer);
void qcow2_limit_cache(struct layer *layer, size_t bytes);

#endif
