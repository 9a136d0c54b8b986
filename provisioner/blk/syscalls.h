/* SPDX-License-Identifier: Apache-2.0 */
/* The system calls that platter-blk may make (seccomp), a part of the sandbox. */
#ifndef PLATTER_PROVISIONER_BLK_SYSCALLS_H
#define PLATTER_PROVISIONER_BLK_SYSCALLS_H

#include "common/error.h"

/* Load the filter for this and every later thread. Needs no_new_privs. Cannot be undone. */
int syscalls_restrict(struct error *err);

#endif
