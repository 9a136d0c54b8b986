// SPDX-License-Identifier: Apache-2.0
/* The plants in the engine: calls between its files, replaced by the linker (--wrap). */
#include "plant.h"

#include <string.h>

#include "backends/format/qcow2/allocator.h"
#include "backends/format/qcow2/commit.h"
#include "backends/format/qcow2/refcount.h"

enum plant plant;

static const struct {
    const char *name;
    enum plant plant;
} plants[] = {
    {"drop-flush", PLANT_DROP_FLUSH}, {"early-done", PLANT_EARLY_DONE}, {"hidden-error", PLANT_HIDDEN_ERROR},
    {"no-barrier", PLANT_NO_BARRIER}, {"no-count", PLANT_NO_COUNT},     {"early-reuse", PLANT_EARLY_REUSE},
    {"no-grace", PLANT_NO_GRACE},     {"late-punch", PLANT_LATE_PUNCH}, {"forget-error", PLANT_FORGET_ERROR},
};

bool plant_choose(const char *name)
{
    for (unsigned i = 0; i < sizeof(plants) / sizeof(plants[0]); i++) {
        if (strcmp(plants[i].name, name) != 0)
            continue;
        plant = plants[i].plant;
        return true;
    }
    return false;
}

void __real_commit_need_barrier(struct qcow2 *);
int __real_refcounts_sync(struct refcounts *);
void __real_allocator_free(struct allocator *, uint64_t, uint64_t);
void __real_image_grace(struct image *);
void __real_image_fail(struct image *, int);
int __real_io_file_discard(struct io_file *, uint64_t, uint64_t);
void __wrap_commit_need_barrier(struct qcow2 *);
int __wrap_refcounts_sync(struct refcounts *);
void __wrap_allocator_free(struct allocator *, uint64_t, uint64_t);
void __wrap_image_grace(struct image *);
void __wrap_image_fail(struct image *, int);
int __wrap_io_file_discard(struct io_file *, uint64_t, uint64_t);

void __wrap_commit_need_barrier(struct qcow2 *q)
{
    if (plant != PLANT_NO_BARRIER)
        __real_commit_need_barrier(q);
}

int __wrap_refcounts_sync(struct refcounts *refcounts)
{
    return plant == PLANT_NO_COUNT ? 0 : __real_refcounts_sync(refcounts);
}

void __wrap_allocator_free(struct allocator *allocator, uint64_t offset, uint64_t count)
{
    __real_allocator_free(allocator, offset, count);
    if (plant != PLANT_EARLY_REUSE)
        return;
    allocator_commit_begin(allocator);
    allocator_commit_end(allocator, 0);
}

void __wrap_image_grace(struct image *image)
{
    if (plant != PLANT_NO_GRACE)
        __real_image_grace(image);
}

void __wrap_image_fail(struct image *image, int error)
{
    if (plant != PLANT_FORGET_ERROR)
        __real_image_fail(image, error);
}

/* The hole of one call is punched by the next. */
int __wrap_io_file_discard(struct io_file *file, uint64_t offset, uint64_t length)
{
    static struct io_file *late_file;
    static uint64_t late_offset, late_length;
    if (plant != PLANT_LATE_PUNCH)
        return __real_io_file_discard(file, offset, length);
    int r = late_file == file ? __real_io_file_discard(file, late_offset, late_length) : 0;
    late_file = file;
    late_offset = offset;
    late_length = length;
    return r;
}
