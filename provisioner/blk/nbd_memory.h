/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The payload memory of one NBD connection: a fixed number of pages, mapped at once and touched when first used, given
 * out as contiguous page-aligned pieces. One thread.
 */
#ifndef PLATTER_PROVISIONER_BLK_NBD_MEMORY_H
#define PLATTER_PROVISIONER_BLK_NBD_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#define NBD_PAGE 4096u
#define NBD_MEMORY_PAGES 1024u /* 4 MiB */

struct nbd_memory {
    uint8_t *base;
    uint64_t used[NBD_MEMORY_PAGES / 64]; /* one bit a page */
    uint32_t next;                        /* where the next search begins */
};

/* -ENOMEM. */
int nbd_memory_create(struct nbd_memory *memory);
/* Also of one that was never created (all zero). */
void nbd_memory_destroy(struct nbd_memory *memory);

/* `length` bytes (more than 0), rounded up to pages, or NULL when no run of free pages is that long. */
void *nbd_memory_take(struct nbd_memory *memory, size_t length);
/* Give back what nbd_memory_take gave for the same length. */
void nbd_memory_give(struct nbd_memory *memory, void *piece, size_t length);

#endif
