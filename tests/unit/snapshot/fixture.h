/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the tests of snapshots: chains of layers in a scratch directory, requests one at a time, qemu-img's word. */
#ifndef PLATTER_TESTS_UNIT_SNAPSHOT_FIXTURE_H
#define PLATTER_TESTS_UNIT_SNAPSHOT_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "backends/format/image.h"
#include "backends/io/seam.h"

#define LAYERS_MAX 40u

/* What kind of layers a chain is made of. */
struct kind {
    const char *name;
    const char *bottom; /* format of the lowest layer */
    uint32_t cluster_size;
    bool extended_l2;
};

extern const struct kind kinds[];
extern const unsigned kinds_count;

/* A group's setup and teardown: the scratch directory. */
int scratch_begin(void **state);
int scratch_end(void **state);
/* A file's path there; the result lasts until the sixteenth call after. */
const char *scratch(const char *name);

/* A chain's layer files are scratch("layer-0") (bottom), "layer-1" and so on. */
const char *layer_path(unsigned number);
const char *layer_format(const struct kind *kind, unsigned number);
/* Make layer `number`, empty, over the one before. */
void layer_create(const struct kind *kind, unsigned number, uint64_t size);
struct io_file *file_open(const char *path, bool writable);
/* Open the chain whose top is layer `number`. Fails the test when that fails. */
struct image *chain_open(const struct kind *kind, unsigned number, bool read_only);

/* image_snapshot with the new layer `number`, which exists. */
int chain_snapshot(const struct kind *kind, struct image *image, unsigned number, struct error *err);
/* What the chain whose top is layer `number` reads as, opened anew for reading. */
void chain_read(const struct kind *kind, unsigned number, uint8_t *content, uint64_t size);

/* One loop and queue, for tests that wait for each request. */
struct client {
    struct io_loop *loop;
    struct image_queue *queue;
};
void client_open(struct client *client, struct image *image);
void client_close(struct client *client);
int client_op(struct client *client, enum image_op op, uint64_t offset, void *buffer, uint64_t length);
int client_status(struct client *client, uint64_t offset, uint64_t length, uint32_t layers,
                  struct image_status *status);

/* qemu-img check: no errors, leaks allowed or not. Prints its words otherwise. */
bool check_image(const char *path, bool leaks_allowed);

/* Run `tests` once for each engine, by PLATTER_IO_ENGINE unless the caller set it. */
int run_on_engines(const struct CMUnitTest *tests, size_t count);

#endif
