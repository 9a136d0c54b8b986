/* SPDX-License-Identifier: Apache-2.0 */
/*
 * platter-blk as the block server of one image (docs/architecture.md, "Between platterd and platter-blk").
 *
 * One control thread answers platterd, one request at a time; I/O runs on the exports' own threads and neither
 * knows nor cares whether platterd is there. SIGTERM ends the server as the request "close" does.
 */
#ifndef PLATTER_PROVISIONER_BLK_SERVER_H
#define PLATTER_PROVISIONER_BLK_SERVER_H

/* Serve on the listening control socket `listen_fd` (taken over) until "close" or SIGTERM, which the caller has
 * blocked. Returns the exit status. */
int server_run(int listen_fd);

#endif
