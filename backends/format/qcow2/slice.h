/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cache of L2 tables, in slices of min(4096, cluster size) bytes, in one fixed array.
 *
 * A slice's key is its number in guest order: the L2 table of L1 entry i holds slices i * slices-in-a-table onwards. So a
 * lookup needs no L1 entry. Words are kept big endian, as on disk.
 *
 * Readers on any thread take no lock: slice_find, read words, slice_valid. A sequence count (odd while a slice
 * changes) tells whether what was read belongs together; whoever loses the race asks again under the layer's lock.
 * All functions below "locked" are called with that lock held. Nothing here does I/O.
 */
#ifndef PLATTER_FORMAT_QCOW2_SLICE_H
#define PLATTER_FORMAT_QCOW2_SLICE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

struct waiter;

enum slice_state { SLICE_FREE, SLICE_LOADING, SLICE_READY };

struct slice {
    _Atomic uint32_t sequence;
    _Atomic uint32_t chain; /* next slice in the hash chain, as index + 1 */
    _Atomic uint64_t key;
    _Atomic uint8_t referenced; /* second chance */

    /* Under the lock. */
    uint8_t state; /* enum slice_state */
    bool dirty;    /* differs from what was last collected for a commit */
    bool writing;  /* collected, not yet written */
    uint32_t pins; /* allocations in flight that will store here */
    struct slice *next_dirty;
    struct waiter *waiters; /* for the load to end */
};

struct slice_cache {
    uint32_t count, size, words; /* slices in use; bytes and words of each */
    uint32_t capacity;           /* slices that there is memory for */
    uint32_t used;               /* slices ever claimed */
    uint32_t hand;
    uint32_t hash_bits;
    _Atomic uint32_t *buckets; /* index + 1 of the first in a chain */
    struct slice *slices;
    _Atomic uint64_t *memory;

    /* Under the lock. */
    struct slice *dirty_head, *dirty_tail; /* oldest first */
    uint32_t dirty_count;
};

/* Control thread. */
int slice_cache_create(uint32_t count, uint32_t size, struct slice_cache **ret_cache, struct error *err);
/* NULL is allowed. Returns NULL. */
struct slice_cache *slice_cache_destroy(struct slice_cache *cache);

/* ---- any thread, no lock ------------------------------------------------------------------------------------ */

/* NULL when it is not cached, or changes just now. */
const struct slice *slice_find(struct slice_cache *cache, uint64_t key, uint32_t *ret_sequence);
/* Did everything that was read since slice_find belong to that slice and one moment? */
static inline bool slice_valid(const struct slice *slice, uint32_t sequence)
{
    return atomic_load_explicit(&slice->sequence, memory_order_relaxed) == sequence;
}
static inline uint64_t slice_word(const struct slice_cache *cache, const struct slice *slice, uint32_t index)
{
    /* Acquire: the check of the sequence that follows must not move before this load. */
    return atomic_load_explicit(&cache->memory[(size_t)(slice - cache->slices) * cache->words + index],
                                memory_order_acquire);
}

/* ---- locked ------------------------------------------------------------------------------------------------- */

/* The slice in state LOADING or READY, or NULL. */
struct slice *slice_get(struct slice_cache *cache, uint64_t key);
/* Take a free slice, or evict a clean one that nobody holds, for `key`, in state LOADING. NULL when there is none. */
struct slice *slice_claim(struct slice_cache *cache, uint64_t key);
/* LOADING -> READY with `bytes` (as on disk), or zeros for NULL. */
void slice_fill(struct slice_cache *cache, struct slice *slice, const void *bytes);
/* LOADING -> FREE. */
void slice_abandon(struct slice_cache *cache, struct slice *slice);

/* Use no more than `count` slices (at least 1) from now on. Slices beyond are given up with their memory, unless they are
 * just being loaded; none may be dirty. */
void slice_cache_limit(struct slice_cache *cache, uint32_t count);

/* Change `count` words from `index` on (host byte order) and mark the slice dirty. */
void slice_store(struct slice_cache *cache, struct slice *slice, uint32_t index, const uint64_t *words, uint32_t count);
void slice_mark_dirty(struct slice_cache *cache, struct slice *slice);
/* The oldest dirty slice: its content goes to `bytes`; it becomes clean and `writing`. NULL when none is dirty. */
struct slice *slice_collect(struct slice_cache *cache, void *bytes);

#endif
