/* SPDX-License-Identifier: Apache-2.0 */
/* Between the scheduler and the jobs. */
#ifndef PLATTER_PROVISIONER_VOLUME_RUN_H
#define PLATTER_PROVISIONER_VOLUME_RUN_H

#include "provisioner/volume/job.h"

/* Do all of a job on the calling thread. False: interrupted by manager_stop, to be resumed at the next start. */
bool job_run(struct job *job);

#endif
