/* SPDX-License-Identifier: Apache-2.0 */
/* Images of several shapes, kinds of damage planted in their bytes, and what they must read as after a repair. */
#ifndef PLATTER_TESTS_UNIT_QCOW2_CHECK_DAMAGE_H
#define PLATTER_TESTS_UNIT_QCOW2_CHECK_DAMAGE_H

#include "fixture.h"

struct shape {
    const char *name;
    struct image_create_options options; /* without the size, which spans two L2 tables */
};
extern const struct shape shapes[];
extern const unsigned shapes_count;

enum expect {
    EXPECT_SAME,       /* as before the damage */
    EXPECT_AS_READ,    /* as after it, and zeros where reading failed */
    EXPECT_TABLE_LOST, /* zeros where the first L2 table led */
};

struct damage {
    const char *name;
    void (*plant)(const struct shape *shape, const char *path);
    size_t counter; /* offset in struct image_check of what must be found */
    enum expect expect;
    bool (*fits)(const struct shape *shape); /* NULL = every shape */
};
extern const struct damage damages[];
extern const unsigned damages_count;

/* A group's setup: the scratch directory, in memory where there is such a place; nothing here waits for a real disk. */
int memory_begin(void **state);

/* The scratch image with data in both tables, closed. */
void shape_create(const struct shape *shape, const char *path);
/* What it reads as, in the places that shape_create wrote and around them; malloc'ed. *ret_failed: some could not be read,
 * and are zeros. NULL: it cannot be opened. */
uint8_t *shape_read(const struct shape *shape, const char *path, bool *ret_failed);
size_t shape_read_length(const struct shape *shape);
/* Open it for writing, change something and close it. */
void shape_use(const struct shape *shape, const char *path);

void check_file(const char *path, bool repair, size_t memory, struct io_seam *seam, struct image_check *ret_check);
uint64_t check_errors(const struct image_check *check); /* all but leaks and flags */
bool check_clean(const struct image_check *check);
/* The content that a repair must give; `read` is what shape_read gave after the damage, may be NULL. Changes `before`. */
void damage_expected(const struct damage *damage, const struct shape *shape, uint8_t *before, const uint8_t *read);

uint64_t peek(const char *path, uint64_t offset);
void poke(const char *path, uint64_t offset, uint64_t value);

#endif
