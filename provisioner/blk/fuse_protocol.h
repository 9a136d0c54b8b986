/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The FUSE kernel protocol as we use it: <linux/fuse.h>, what younger kernels added to it, and the values that INIT
 * settles. A successor that takes a connection over cannot ask for those: they never change, and so are constants.
 */
#ifndef PLATTER_PROVISIONER_BLK_FUSE_PROTOCOL_H
#define PLATTER_PROVISIONER_BLK_FUSE_PROTOCOL_H

#include <linux/fuse.h>
#include <stdint.h>

/* Not in the headers of kernel 6.1 (protocol 7.38). */
enum { FUSE_NOTIFICATION_RESEND = 7 };
#define FUSE_FLAG_RESEND (UINT64_C(1) << 39)

#ifndef FOPEN_PARALLEL_DIRECT_WRITES
#define FOPEN_PARALLEL_DIRECT_WRITES (1 << 6)
#endif

/* What INIT settles. 32 pages: more bring no throughput through a loop device, only memory. */
#define FUSE_TRANSFER_PAGES 32u
#define FUSE_TRANSFER_MAX (FUSE_TRANSFER_PAGES * UINT64_C(4096)) /* bytes of one READ or WRITE */
#define FUSE_BACKGROUND_MAX 256u                                 /* asynchronous requests at one time */
#define FUSE_CONGESTION 192u

/* The header of a WRITE: read so that it ends where the page-aligned data begins. */
#define FUSE_REQUEST_HEAD 80u
_Static_assert(sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in) == FUSE_REQUEST_HEAD, "a WRITE's header");
_Static_assert(sizeof(struct fuse_out_header) == 16, "an answer's header");

#endif
