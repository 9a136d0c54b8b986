/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small reader and judge of qcow2 images in memory, written from the specification and sharing nothing with the engine:
 * header, L1, L2, reference counts, content. It knows what the harness makes (versions 2 and 3, extended L2, a raw layer
 * below; no snapshots, no compression, no encryption) and takes anything else for an error.
 */
#ifndef PLATTER_TESTS_CRASH_CHECKER_H
#define PLATTER_TESTS_CRASH_CHECKER_H

#include <stdint.h>

struct checker {
    /* To be filled by the caller. */
    const uint8_t *below; /* content of the layer below; NULL = none */
    uint64_t below_size;
    uint8_t *content; /* room for `content_room` bytes: what a guest reads */
    uint64_t content_room;

    /* The answer. */
    uint64_t size;  /* of the disk, bytes */
    uint64_t leaks; /* clusters */
    char error[200];

    /* Its own. */
    uint16_t *uses; /* for each cluster of the file */
    uint64_t uses_room;
};

/* 0, or -1 with `error` filled: something that is more than a leak. */
int checker_run(struct checker *checker, const uint8_t *image, uint64_t length);
void checker_destroy(struct checker *checker);

#endif
