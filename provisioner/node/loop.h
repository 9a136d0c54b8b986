/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loop devices. Each carries a label ("platter/att-...") in the kernel's own status, so that a restarted platterd finds
 * its devices again, and none is ever touched that is not the one meant. They do not clear themselves
 * (LO_FLAGS_AUTOCLEAR): a device must outlive the platterd that made it and the moments in which nobody has it open.
 *
 * A device keeps its backing file's open file description, and with it the image locks that were taken on it.
 */
#ifndef PLATTER_PROVISIONER_NODE_LOOP_H
#define PLATTER_PROVISIONER_NODE_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

#define LOOP_DEVICE_MAX 24 /* "/dev/loop1048575" */
#define LOOP_LABEL_MAX 64

/* Bind `fd` (still the caller's) to a free device: direct I/O, 512-byte blocks, no partition scan. */
int loop_attach(int fd, const char *label, bool read_only, char ret_device[LOOP_DEVICE_MAX], struct error *err);

/* Unbind. Idempotent: a device that is free, or has another label by now, is left alone. -EBUSY (code "target-busy")
 * when somebody still has it open: then it stays as it was. Waits up to a second for short visits (udev) to end. */
int loop_detach(const char *device, const char *label, struct error *err);

/* The device with this label; -ENOENT. */
int loop_find(const char *label, char ret_device[LOOP_DEVICE_MAX], struct error *err);

/* Take over the backing file's new size. */
int loop_resize(const char *device, const char *label, struct error *err);

/* Open the device after checking that it carries `label` (-ESTALE otherwise). */
int loop_open(const char *device, const char *label, int flags, int *ret_fd, struct error *err);

/* Every bound device whose label begins with `prefix`. Nonzero ends the walk and is returned. */
typedef int (*loop_fn)(void *arg, const char *device, const char *label);
int loop_walk(const char *prefix, loop_fn fn, void *arg, struct error *err);

#endif
