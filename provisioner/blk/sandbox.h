/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The walls around everything that parses an image: entered once, before the first image byte is read, and never left.
 *
 * Inside: no capability and none to be gained, no path to be opened and no TCP or abstract socket to be reached
 * (an empty Landlock ruleset, as far as the kernel's version of it goes), and of system calls only those that work on
 * descriptors already held, on memory, threads, time and io_uring. Opening a path fails with EACCES; any other
 * call that is not on the list ends the process with SIGSYS and a line in the kernel's audit log.
 */
#ifndef PLATTER_PROVISIONER_BLK_SANDBOX_H
#define PLATTER_PROVISIONER_BLK_SANDBOX_H

#include <stdbool.h>

#include "common/error.h"

/* The sanitizers open files and trace threads of their own when they report, so builds with them stand outside. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANDBOX_SANITIZED true
#else
#define SANDBOX_SANITIZED false
#endif

/* Call with one thread only, before any other is started. Landlock may be missing (old kernel, switched off): then
 * *ret_landlock is false and the rest holds. Any other failure is an error: do not go on. */
int sandbox_enter(bool *ret_landlock, struct error *err);

/* What needs privileges, done before they are dropped; each is of use but not needed, so failures are ignored: this
 * process writes data back (PR_SET_IO_FLUSHER), enough descriptors, enough memory for registered buffers. */
void sandbox_prepare(void);

#endif
