// SPDX-License-Identifier: Apache-2.0
/*
 * See slice.h. Hash chains are linked by index in the slices themselves and never freed, so a reader that is
 * overtaken by an eviction merely wanders into another chain: the key and the sequence count keep it from a wrong
 * hit, a bound on its steps from going round.
 */
#include "backends/format/qcow2/slice.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/checked.h"

#define CHAIN_STEPS_MAX 32u

static uint32_t bucket_of(const struct slice_cache *cache, uint64_t key)
{
    return (uint32_t)((key * UINT64_C(0x9e3779b97f4a7c15)) >> (64 - cache->hash_bits));
}

static _Atomic uint64_t *words_of(struct slice_cache *cache, const struct slice *slice)
{
    return cache->memory + (size_t)(slice - cache->slices) * cache->words;
}

static uint32_t number_of(const struct slice_cache *cache, const struct slice *slice)
{
    return (uint32_t)(slice - cache->slices) + 1;
}

int slice_cache_create(uint32_t count, uint32_t size, struct slice_cache **ret_cache, struct error *err)
{
    struct slice_cache *cache = calloc(1, sizeof(*cache));
    if (!cache)
        return error_sys(err, ENOMEM, "slice cache");
    cache->count = cache->capacity = count;
    cache->size = size;
    cache->words = size / (uint32_t)sizeof(uint64_t);
    cache->hash_bits = 1;
    while (cache->hash_bits < 31 && (UINT64_C(1) << cache->hash_bits) < count)
        cache->hash_bits++;
    cache->buckets = calloc((size_t)1 << cache->hash_bits, sizeof(*cache->buckets));
    cache->slices = calloc(count, sizeof(*cache->slices));
    void *memory =
        mmap(NULL, (size_t)count * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    cache->memory = memory == MAP_FAILED ? NULL : memory;
    if (!cache->buckets || !cache->slices || !cache->memory) {
        slice_cache_destroy(cache);
        return error_sys(err, ENOMEM, "slice cache of %u slices", count);
    }
    *ret_cache = cache;
    return 0;
}

struct slice_cache *slice_cache_destroy(struct slice_cache *cache)
{
    if (!cache)
        return NULL;
    if (cache->memory)
        (void)munmap((void *)cache->memory, (size_t)cache->capacity * cache->size);
    free((void *)cache->buckets);
    free(cache->slices);
    free(cache);
    return NULL;
}

const struct slice *slice_find(struct slice_cache *cache, uint64_t key, uint32_t *ret_sequence)
{
    uint32_t number = atomic_load_explicit(&cache->buckets[bucket_of(cache, key)], memory_order_acquire);
    for (unsigned steps = 0; number && steps < CHAIN_STEPS_MAX; steps++) {
        struct slice *slice = &cache->slices[number - 1];
        uint32_t sequence = atomic_load_explicit(&slice->sequence, memory_order_acquire);
        if (!(sequence & 1) && atomic_load_explicit(&slice->key, memory_order_acquire) == key) {
            /* Only where it changes something: a store by every reader would make the line travel. */
            if (!atomic_load_explicit(&slice->referenced, memory_order_relaxed))
                atomic_store_explicit(&slice->referenced, 1, memory_order_relaxed);
            *ret_sequence = sequence;
            return slice;
        }
        number = atomic_load_explicit(&slice->chain, memory_order_acquire);
    }
    return NULL;
}

struct slice *slice_get(struct slice_cache *cache, uint64_t key)
{
    uint32_t number = atomic_load_explicit(&cache->buckets[bucket_of(cache, key)], memory_order_relaxed);
    while (number) {
        struct slice *slice = &cache->slices[number - 1];
        if (atomic_load_explicit(&slice->key, memory_order_relaxed) == key) {
            atomic_store_explicit(&slice->referenced, 1, memory_order_relaxed);
            return slice;
        }
        number = atomic_load_explicit(&slice->chain, memory_order_relaxed);
    }
    return NULL;
}

/* From now on readers see an odd sequence, or, where they see one of the stores that follow (all release), at least
 * know that it changed. */
static void change_begin(struct slice *slice)
{
    uint32_t sequence = atomic_load_explicit(&slice->sequence, memory_order_relaxed);
    atomic_store_explicit(&slice->sequence, sequence + 1, memory_order_relaxed);
}

static void change_end(struct slice *slice)
{
    uint32_t sequence = atomic_load_explicit(&slice->sequence, memory_order_relaxed);
    atomic_store_explicit(&slice->sequence, sequence + 1, memory_order_release);
}

static void chain_remove(struct slice_cache *cache, struct slice *slice)
{
    uint64_t key = atomic_load_explicit(&slice->key, memory_order_relaxed);
    _Atomic uint32_t *link = &cache->buckets[bucket_of(cache, key)];
    uint32_t number;
    while ((number = atomic_load_explicit(link, memory_order_relaxed)) != number_of(cache, slice))
        link = &cache->slices[number - 1].chain;
    atomic_store_explicit(link, atomic_load_explicit(&slice->chain, memory_order_relaxed), memory_order_release);
}

static void chain_insert(struct slice_cache *cache, struct slice *slice, uint64_t key)
{
    _Atomic uint32_t *head = &cache->buckets[bucket_of(cache, key)];
    atomic_store_explicit(&slice->key, key, memory_order_release);
    atomic_store_explicit(&slice->chain, atomic_load_explicit(head, memory_order_relaxed), memory_order_release);
    atomic_store_explicit(head, number_of(cache, slice), memory_order_release);
}

static bool evictable(const struct slice *slice)
{
    return slice->state == SLICE_FREE ||
           (slice->state == SLICE_READY && !slice->dirty && !slice->writing && !slice->pins);
}

static struct slice *find_victim(struct slice_cache *cache)
{
    if (cache->used < cache->count)
        return &cache->slices[cache->used++];
    for (uint64_t i = 0; i < 2 * (uint64_t)cache->count; i++) {
        struct slice *slice = &cache->slices[cache->hand];
        cache->hand = (cache->hand + 1) % cache->count;
        if (!evictable(slice))
            continue;
        if (slice->state == SLICE_FREE || !atomic_load_explicit(&slice->referenced, memory_order_relaxed))
            return slice;
        atomic_store_explicit(&slice->referenced, 0, memory_order_relaxed);
    }
    /* Readers may have marked every candidate again meanwhile. */
    for (uint32_t i = 0; i < cache->count; i++)
        if (evictable(&cache->slices[i]))
            return &cache->slices[i];
    return NULL;
}

struct slice *slice_claim(struct slice_cache *cache, uint64_t key)
{
    struct slice *slice = find_victim(cache);
    if (!slice)
        return NULL;
    change_begin(slice);
    if (slice->state != SLICE_FREE)
        chain_remove(cache, slice);
    chain_insert(cache, slice, key);
    slice->state = SLICE_LOADING;
    slice->waiters = NULL;
    atomic_store_explicit(&slice->referenced, 1, memory_order_relaxed);
    return slice;
}

void slice_fill(struct slice_cache *cache, struct slice *slice, const void *bytes)
{
    _Atomic uint64_t *words = words_of(cache, slice);
    const uint64_t *from = bytes;
    for (uint32_t i = 0; i < cache->words; i++)
        atomic_store_explicit(&words[i], from ? from[i] : 0, memory_order_release);
    slice->state = SLICE_READY;
    change_end(slice);
}

void slice_abandon(struct slice_cache *cache, struct slice *slice)
{
    chain_remove(cache, slice);
    atomic_store_explicit(&slice->key, UINT64_MAX, memory_order_release);
    slice->state = SLICE_FREE;
    change_end(slice);
}

/* Readers that hold the slice see that it changed, so its memory may go. False when it is being loaded. */
static bool give_up(struct slice_cache *cache, struct slice *slice)
{
    if (slice->state == SLICE_LOADING)
        return false;
    if (slice->state == SLICE_READY) {
        change_begin(slice);
        slice_abandon(cache, slice);
    }
    return true;
}

void slice_cache_limit(struct slice_cache *cache, uint32_t count)
{
    bool all = true;
    if (count >= cache->count)
        return;
    for (uint32_t i = count; i < cache->used; i++)
        all = give_up(cache, &cache->slices[i]) && all;
    cache->count = count;
    cache->used = MIN(cache->used, count);
    cache->hand = 0;
    size_t kept = align_up((size_t)count * cache->size, 4096);
    size_t whole = (size_t)cache->capacity * cache->size;
    if (all && kept < whole)
        (void)madvise((uint8_t *)cache->memory + kept, whole - kept, MADV_DONTNEED);
}

void slice_mark_dirty(struct slice_cache *cache, struct slice *slice)
{
    if (slice->dirty)
        return;
    slice->dirty = true;
    slice->next_dirty = NULL;
    if (cache->dirty_tail)
        cache->dirty_tail->next_dirty = slice;
    else
        cache->dirty_head = slice;
    cache->dirty_tail = slice;
    cache->dirty_count++;
}

void slice_store(struct slice_cache *cache, struct slice *slice, uint32_t index, const uint64_t *words, uint32_t count)
{
    _Atomic uint64_t *to = words_of(cache, slice) + index;
    change_begin(slice);
    for (uint32_t i = 0; i < count; i++)
        atomic_store_explicit(&to[i], htobe64(words[i]), memory_order_release);
    change_end(slice);
    slice_mark_dirty(cache, slice);
}

struct slice *slice_collect(struct slice_cache *cache, void *bytes)
{
    struct slice *slice = cache->dirty_head;
    if (!slice)
        return NULL;
    cache->dirty_head = slice->next_dirty;
    if (!cache->dirty_head)
        cache->dirty_tail = NULL;
    cache->dirty_count--;
    slice->dirty = false;
    slice->writing = true;
    uint64_t *to = bytes;
    for (uint32_t i = 0; i < cache->words; i++)
        to[i] = slice_word(cache, slice, i);
    return slice;
}
