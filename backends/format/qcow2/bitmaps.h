/* SPDX-License-Identifier: Apache-2.0 */
/* Persistent bitmaps that other tools keep in an image (the specification, "Bitmaps extension"): not kept up to date here,
 * so they are marked in use before the first write, which tells everybody that they are not to be trusted. */
#ifndef PLATTER_FORMAT_QCOW2_BITMAPS_H
#define PLATTER_FORMAT_QCOW2_BITMAPS_H

#include "backends/format/qcow2/qcow2.h"

/* Control thread, at a writable open. 0: every bitmap is marked in use, durably, and the header's bit for bitmaps may stay
 * set (so that tools still count their clusters). -EUCLEAN: the directory is not as it should be, nothing was written and
 * the bit must go. -EIO, ... */
int bitmaps_mark_in_use(struct qcow2 *q);

#endif
