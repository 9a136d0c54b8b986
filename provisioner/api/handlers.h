/* SPDX-License-Identifier: Apache-2.0 */
/* What the routes call (handle_OBJECT_VERB). Each checks the request's members and asks the manager. */
#ifndef PLATTER_API_HANDLERS_H
#define PLATTER_API_HANDLERS_H

#include "provisioner/api/request.h"

int handle_version_get(struct request *request, struct error *err);
int handle_health_get(struct request *request, struct error *err);
int handle_metrics_get(struct request *request, struct error *err);
int handle_orphan_list(struct request *request, struct error *err);

int handle_pool_list(struct request *request, struct error *err);
int handle_pool_create(struct request *request, struct error *err);
int handle_pool_get(struct request *request, struct error *err);
int handle_pool_delete(struct request *request, struct error *err);

int handle_volume_list(struct request *request, struct error *err);
int handle_volume_create(struct request *request, struct error *err);
int handle_volume_import(struct request *request, struct error *err);
int handle_volume_export(struct request *request, struct error *err);
int handle_volume_get(struct request *request, struct error *err);
int handle_volume_resize(struct request *request, struct error *err);
int handle_volume_check(struct request *request, struct error *err);
int handle_volume_compact(struct request *request, struct error *err);
int handle_volume_clone(struct request *request, struct error *err);
int handle_volume_restore(struct request *request, struct error *err);
int handle_volume_delete(struct request *request, struct error *err);

int handle_snapshot_list(struct request *request, struct error *err);
int handle_snapshot_create(struct request *request, struct error *err);
int handle_snapshot_group_create(struct request *request, struct error *err);
int handle_snapshot_get(struct request *request, struct error *err);
int handle_snapshot_delete(struct request *request, struct error *err);
int handle_snapshot_allocated(struct request *request, struct error *err);
int handle_snapshot_changed(struct request *request, struct error *err);

int handle_attachment_list(struct request *request, struct error *err);
int handle_attachment_create(struct request *request, struct error *err);
int handle_attachment_get(struct request *request, struct error *err);
int handle_attachment_delete(struct request *request, struct error *err);

int handle_job_list(struct request *request, struct error *err);
int handle_job_get(struct request *request, struct error *err);
int handle_job_cancel(struct request *request, struct error *err);

int handle_event_list(struct request *request, struct error *err);

#endif
