/* SPDX-License-Identifier: Apache-2.0 */
/* A volume in a temporary file, served by the vhost-user export of this process. */
#ifndef PLATTER_TESTS_UNIT_VHOST_FIXTURE_H
#define PLATTER_TESTS_UNIT_VHOST_FIXTURE_H

#include "backends/io/seam.h"
#include "provisioner/blk/export.h"
#include "tests/lib/vhost_client.h"

#define FIXTURE_QUEUES 3

struct fixture {
    const char *format;
    uint64_t size;
    bool read_only;
    char path[64], socket[64];
    struct io_file *file;
    struct image *image;
    struct export *export;
    struct io_seam seam;
    unsigned flushes; /* atomic: that reached the file */
};

/* "raw" or "qcow2"; a new image of `size` bytes. Fails the test on an error. */
void fixture_start(struct fixture *fixture, const char *format, uint64_t size, bool read_only);
void fixture_stop(struct fixture *fixture);

/* A connected client; fails the test on an error. `options` may be NULL; its socket is filled in. */
struct vhost_client *fixture_client(const struct fixture *fixture, const struct vhost_client_options *options);

/* Open descriptors of this process. */
unsigned count_fds(void);

uint64_t test_random(uint64_t *state);
/* PLATTER_TEST_SEED or a new one; printed. */
uint64_t test_seed(void);

#endif
