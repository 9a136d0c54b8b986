/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A QMP connection to a running QEMU, and plugging disks in and out through it. Every call blocks, at most for the
 * connection's deadline (-ETIMEDOUT). What QEMU says is input from a stranger: bounded and checked.
 */
#ifndef PLATTER_PROVISIONER_NODE_QMP_H
#define PLATTER_PROVISIONER_NODE_QMP_H

#include <jansson.h>
#include <stdbool.h>

#include "common/error.h"

struct qmp;

/* Takes the connected socket over, also on failure; greets and negotiates. */
int qmp_create(int fd, int deadline_ms, struct qmp **ret_qmp, struct error *err);
struct qmp *qmp_destroy(struct qmp *qmp);

/* Execute one command; `arguments` (NULL = none) is taken over. ret_result may be NULL. -ENODEV: QEMU's DeviceNotFound;
 * -EREMOTEIO: any other refusal, with its text. */
int qmp_execute(struct qmp *qmp, const char *command, json_t *arguments, json_t **ret_result, struct error *err);

struct qmp_disk {
    const char *id;     /* of the device; chardev or node is named by it, too */
    const char *socket; /* of platter-blk */
    bool nbd;           /* else vhost-user-blk */
    const char *name;   /* NBD: the export's name */
    const char *serial;
    unsigned queues;
};

/* Plug the disk into a free PCIe root port (or the root bus, where that takes it). Idempotent. */
int qmp_plug(struct qmp *qmp, const struct qmp_disk *disk, struct error *err);
/* Ask the guest to give the disk back, wait until it has, remove what was added. Idempotent. -EBUSY (code
 * "target-busy"): the guest did not within the deadline. */
int qmp_unplug(struct qmp *qmp, const struct qmp_disk *disk, struct error *err);

/* The two commands that qmp_plug executes, as {"execute", "arguments"}, without the choice of a port: for people. */
json_t *qmp_commands(const struct qmp_disk *disk);

#endif
