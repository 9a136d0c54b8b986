/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An NBD export over a new raw image, and a client that speaks the wire's bytes: for what real clients would never send.
 * Everything fails the running test when it does not succeed.
 */
#ifndef PLATTER_TESTS_UNIT_NBD_PEER_H
#define PLATTER_TESTS_UNIT_NBD_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "provisioner/blk/export.h"
#include "provisioner/blk/nbd_protocol.h"

struct bed {
    char directory[64];
    char socket[96];
    struct image *image;
    struct export *export;
    uint64_t size;
};

void bed_open(struct bed *bed, uint64_t size, unsigned threads, bool read_only);
void bed_close(struct bed *bed); /* stops the export unless bed->export is NULL */

/* A connection on which nothing was said. */
int peer_dial(const struct bed *bed);
/* A connection after the server's greeting and our flags. */
int peer_connect(const struct bed *bed);
/* The same, and through GO (with structured replies and base:allocation when asked for). */
int peer_open(const struct bed *bed, bool structured);

void peer_send(int fd, const void *bytes, size_t length);
void peer_receive(int fd, void *bytes, size_t length);
/* The server has closed the connection: nothing but the end (or a reset) comes. */
void peer_expect_end(int fd);

void peer_option(int fd, uint32_t option, const void *data, size_t length);
/* The header of an option's answer; its data is put into `data` (room for `size`). Returns its type. */
uint32_t peer_option_reply(int fd, uint32_t option, void *data, size_t size, size_t *ret_length);

void peer_request(int fd, uint16_t type, uint16_t flags, uint64_t cookie, uint64_t offset, uint32_t length);
/* A simple reply's header: returns the error. */
uint32_t peer_simple(int fd, uint64_t *ret_cookie);

struct peer_chunk {
    uint16_t flags, type;
    uint64_t cookie;
    uint32_t length;
};
void peer_chunk(int fd, struct peer_chunk *ret_chunk);

#endif
