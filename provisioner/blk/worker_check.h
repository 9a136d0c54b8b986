/* SPDX-License-Identifier: Apache-2.0 */
/* The worker's command `check` (docs/architecture.md). */
#ifndef PLATTER_PROVISIONER_BLK_WORKER_CHECK_H
#define PLATTER_PROVISIONER_BLK_WORKER_CHECK_H

#include <jansson.h>
#include <stdint.h>

#include "common/error.h"

/* Check, and with the member `repair` repair, the image file *fd, which is taken over. `progress` as in struct
 * image_check_options. The counters go into `answer`. */
int worker_check(const json_t *request, int *fd, int (*progress)(void *context, uint64_t done, uint64_t total),
                 void *context, json_t *answer, struct error *err);

#endif
