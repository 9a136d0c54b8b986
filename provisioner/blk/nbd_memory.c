// SPDX-License-Identifier: Apache-2.0
// Payload memory: next fit over a bitmap of pages. Pieces live for one request, so runs of free pages form again fast.
#include "provisioner/blk/nbd_memory.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>

#include "common/checked.h"

#define BYTES ((size_t)NBD_MEMORY_PAGES * NBD_PAGE)

int nbd_memory_create(struct nbd_memory *memory)
{
    void *base = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return -ENOMEM;
    *memory = (struct nbd_memory){.base = base};
    return 0;
}

void nbd_memory_destroy(struct nbd_memory *memory)
{
    if (memory->base)
        (void)munmap(memory->base, BYTES);
    memory->base = NULL;
}

/* The first page at or after `from` that is used (or free); NBD_MEMORY_PAGES when there is none. */
static uint32_t find(const struct nbd_memory *memory, uint32_t from, bool used)
{
    while (from < NBD_MEMORY_PAGES) {
        uint64_t word = memory->used[from / 64];
        word = (used ? word : ~word) >> (from % 64);
        if (word)
            return from + (uint32_t)__builtin_ctzll(word);
        from = (from / 64 + 1) * 64;
    }
    return NBD_MEMORY_PAGES;
}

static void mark(struct nbd_memory *memory, uint32_t first, uint32_t count, bool used)
{
    for (uint32_t page = first; page < first + count;) {
        uint32_t bit = page % 64;
        uint32_t run = MIN(first + count - page, 64 - bit);
        uint64_t mask = (run == 64 ? ~UINT64_C(0) : (UINT64_C(1) << run) - 1) << bit;
        if (used)
            memory->used[page / 64] |= mask;
        else
            memory->used[page / 64] &= ~mask;
        page += run;
    }
}

static void *take_from(struct nbd_memory *memory, uint32_t from, uint32_t limit, uint32_t count)
{
    while ((from = find(memory, from, false)) < limit) {
        uint32_t end = find(memory, from, true);
        if (end - from >= count) {
            mark(memory, from, count, true);
            memory->next = from + count;
            return memory->base + (size_t)from * NBD_PAGE;
        }
        from = end;
    }
    return NULL;
}

void *nbd_memory_take(struct nbd_memory *memory, size_t length)
{
    assert(length > 0 && length <= BYTES);
    uint32_t count = (uint32_t)div_round_up(length, NBD_PAGE);
    uint32_t start = memory->next;
    void *piece = take_from(memory, start, NBD_MEMORY_PAGES, count);
    return piece ? piece : take_from(memory, 0, start, count);
}

void nbd_memory_give(struct nbd_memory *memory, void *piece, size_t length)
{
    size_t offset = (size_t)((uint8_t *)piece - memory->base);
    assert(offset < BYTES && is_aligned(offset, NBD_PAGE));
    mark(memory, (uint32_t)(offset / NBD_PAGE), (uint32_t)div_round_up(length, NBD_PAGE), false);
}
