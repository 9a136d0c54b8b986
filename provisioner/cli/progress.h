/* SPDX-License-Identifier: Apache-2.0 */
/* A job's progress on standard error: a bar with rate and time left on a terminal, or JSON lines. */
#ifndef PLATTER_CLI_PROGRESS_H
#define PLATTER_CLI_PROGRESS_H

#include <stdint.h>

#include "provisioner/cli/command.h"

struct progress {
    enum progress_form form; /* never AUTO once started */
    int64_t start_ns;
    uint64_t first_done; /* of the first report: the rate counts from there */
    bool any;
};

void progress_start(struct progress *progress, enum progress_form form);
/* Show what the job reports now; a job without a total shows nothing. */
void progress_show(struct progress *progress, const json_t *job);
/* Take the bar away. */
void progress_end(struct progress *progress);
static inline bool progress_wanted(const struct progress *progress)
{
    return progress->form != PROGRESS_NONE;
}

int64_t monotonic_ns(void);

#endif
