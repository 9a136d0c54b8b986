// SPDX-License-Identifier: Apache-2.0
#include "alloc.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "fatal.h"
#include "memory.h"
#include "schedule.h"

static struct fault *at_work;

void *__real_malloc(size_t);
void *__real_calloc(size_t, size_t);
void *__real_aligned_alloc(size_t, size_t);
int __real_posix_memalign(void **, size_t, size_t);
void *__real_mmap(void *, size_t, int, int, int, off_t);
void *__wrap_malloc(size_t);
void *__wrap_calloc(size_t, size_t);
void *__wrap_aligned_alloc(size_t, size_t);
int __wrap_posix_memalign(void **, size_t, size_t);
void *__wrap_mmap(void *, size_t, int, int, int, off_t);

struct fault *memory_fault(struct fault *fault)
{
    struct fault *before = at_work;
    at_work = fault;
    return before;
}

void *own_alloc(void *old, size_t size)
{
    return need(realloc(old, size + 1));
}

static bool fails(void)
{
    return at_work && schedule_active() && fault_now(at_work, FAULT_OF_MEMORY, 0) != 0;
}

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return fails() ? NULL : __real_aligned_alloc(alignment, size);
}

int __wrap_posix_memalign(void **ret, size_t alignment, size_t size)
{
    return fails() ? ENOMEM : __real_posix_memalign(ret, alignment, size);
}

void *__wrap_mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset)
{
    if (!fails())
        return __real_mmap(at, length, protection, flags, fd, offset);
    errno = ENOMEM;
    return MAP_FAILED;
}
