// SPDX-License-Identifier: Apache-2.0
/* The slice cache: lookups without a lock while slices change, are evicted and loaded again. */
#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backends/format/qcow2/slice.h"

#define WORDS 64u
#define SIZE (WORDS * 8)

static struct slice_cache *cache_of(uint32_t count)
{
    struct slice_cache *cache = NULL;
    assert_int_equal(slice_cache_create(count, SIZE, &cache, NULL), 0);
    return cache;
}

static struct slice *load(struct slice_cache *cache, uint64_t key)
{
    struct slice *slice = slice_claim(cache, key);
    if (slice)
        slice_fill(cache, slice, NULL);
    return slice;
}

static void finds_what_was_loaded(void **state)
{
    (void)state;
    struct slice_cache *cache = cache_of(8);
    uint32_t sequence;
    uint64_t word = 7;
    assert_null(slice_find(cache, 3, &sequence));
    struct slice *slice = slice_claim(cache, 3);
    assert_non_null(slice);
    assert_null(slice_find(cache, 3, &sequence)); /* loading */
    slice_fill(cache, slice, NULL);
    assert_ptr_equal(slice_find(cache, 3, &sequence), slice);
    assert_true(slice_valid(slice, sequence));
    slice_store(cache, slice, 5, &word, 1);
    assert_false(slice_valid(slice, sequence));
    assert_int_equal(be64toh(slice_word(cache, slice, 5)), 7);
    assert_int_equal(cache->dirty_count, 1);
    slice = slice_claim(cache, 4);
    slice_abandon(cache, slice);
    assert_null(slice_find(cache, 4, &sequence));
    (void)slice_cache_destroy(cache);
}

static void dirty_and_pinned_slices_stay(void **state)
{
    (void)state;
    struct slice_cache *cache = cache_of(4);
    uint64_t word = 1, bytes[WORDS];
    uint32_t sequence;
    for (uint64_t key = 0; key < 4; key++)
        slice_store(cache, load(cache, key), 0, &word, 1);
    assert_null(slice_claim(cache, 9));
    struct slice *oldest = slice_collect(cache, bytes);
    assert_int_equal(atomic_load(&oldest->key), 0);
    assert_int_equal(be64toh(bytes[0]), 1);
    assert_null(slice_claim(cache, 9)); /* still to be written */
    oldest->writing = false;
    oldest->pins = 1;
    assert_null(slice_claim(cache, 9));
    oldest->pins = 0;
    assert_ptr_equal(load(cache, 9), oldest);
    assert_null(slice_find(cache, 0, &sequence));
    assert_non_null(slice_find(cache, 9, &sequence));
    (void)slice_cache_destroy(cache);
}

/* ---- readers against a writer ---- */

#define KEYS 24u

struct race {
    struct slice_cache *cache;
    _Atomic bool stop;
    _Atomic uint64_t hits, wrong;
};

/* Every word of a slice holds key * 2^32 + generation, the same generation in all: anything else is a torn read. */
static void *reader_main(void *arg)
{
    struct race *race = arg;
    uint64_t hits = 0;
    unsigned seed = 1;
    while (!atomic_load(&race->stop) || hits == 0) {
        uint64_t key = (unsigned)rand_r(&seed) % KEYS;
        uint32_t sequence;
        const struct slice *slice = slice_find(race->cache, key, &sequence);
        if (!slice)
            continue;
        uint64_t first = be64toh(slice_word(race->cache, slice, 0));
        uint64_t last = be64toh(slice_word(race->cache, slice, WORDS - 1));
        if (!slice_valid(slice, sequence))
            continue;
        hits++;
        if (first != last || (first && first >> 32 != key))
            atomic_fetch_add(&race->wrong, 1);
    }
    atomic_fetch_add(&race->hits, hits);
    return NULL;
}

static void write_some(struct slice_cache *cache, uint64_t key, uint64_t generation)
{
    uint64_t words[WORDS], bytes[WORDS];
    struct slice *slice = slice_get(cache, key);
    if (!slice)
        slice = load(cache, key);
    assert_non_null(slice);
    for (unsigned i = 0; i < WORDS; i++)
        words[i] = key << 32 | generation;
    slice_store(cache, slice, 0, words, WORDS);
    slice = slice_collect(cache, bytes);
    slice->writing = false;
}

static void readers_never_see_half_a_change(void **state)
{
    (void)state;
    struct race race = {.cache = cache_of(8)};
    pthread_t readers[3];
    unsigned seed = 2;
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&readers[i], NULL, reader_main, &race), 0);
    for (uint64_t i = 1; i <= 60000; i++)
        write_some(race.cache, (unsigned)rand_r(&seed) % KEYS, i);
    atomic_store(&race.stop, true);
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_join(readers[i], NULL), 0);
    assert_int_equal(atomic_load(&race.wrong), 0);
    assert_true(atomic_load(&race.hits) > 0);
    (void)slice_cache_destroy(race.cache);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_what_was_loaded),
        cmocka_unit_test(dirty_and_pinned_slices_stay),
        cmocka_unit_test(readers_never_see_half_a_change),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
