/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that runs out: malloc, calloc, aligned_alloc, posix_memalign and mmap of everything linked with this are replaced
 * by the linker (--wrap) and fail when a fault of kind FAULT_MEMORY says so.
 */
#ifndef PLATTER_TESTS_CRASH_ALLOC_H
#define PLATTER_TESTS_CRASH_ALLOC_H

#include <stddef.h>

struct fault;

/* At work from now on; NULL = none. Returns the one before. */
struct fault *memory_fault(struct fault *fault);

/* For the harness while faults are at work: realloc that never fails. */
void *own_alloc(void *old, size_t size);

#endif
