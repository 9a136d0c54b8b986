/* SPDX-License-Identifier: Apache-2.0 */
/* What the routes call. Each checks the request's members and asks the manager. */
#ifndef PLATTER_API_HANDLERS_H
#define PLATTER_API_HANDLERS_H

#include "provisioner/api/request.h"

int version_get(struct request *request, struct error *err);
int health_get(struct request *request, struct error *err);
int metrics_get(struct request *request, struct error *err);
int orphan_list(struct request *request, struct error *err);

int pool_list(struct request *request, struct error *err);
int pool_create(struct request *request, struct error *err);
int pool_get(struct request *request, struct error *err);
int pool_delete(struct request *request, struct error *err);

int volume_list(struct request *request, struct error *err);
int volume_create(struct request *request, struct error *err);
int volume_import(struct request *request, struct error *err);
int volume_export(struct request *request, struct error *err);
int volume_get(struct request *request, struct error *err);
int volume_resize(struct request *request, struct error *err);
int volume_delete(struct request *request, struct error *err);

int attachment_list(struct request *request, struct error *err);
int attachment_create(struct request *request, struct error *err);
int attachment_get(struct request *request, struct error *err);
int attachment_delete(struct request *request, struct error *err);

int job_list(struct request *request, struct error *err);
int job_get(struct request *request, struct error *err);
int job_cancel(struct request *request, struct error *err);

int event_list(struct request *request, struct error *err);

#endif
