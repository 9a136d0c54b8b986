// SPDX-License-Identifier: Apache-2.0
// Payload memory: pieces never overlap, come back, and fill the whole.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "common/checked.h"
#include "provisioner/blk/nbd_memory.h"

#define BYTES ((size_t)NBD_MEMORY_PAGES * NBD_PAGE)
#define PIECES 256

static int setup(void **state)
{
    static struct nbd_memory memory;
    *state = &memory;
    return nbd_memory_create(&memory);
}

static int teardown(void **state)
{
    nbd_memory_destroy(*state);
    return 0;
}

static void whole(void **state)
{
    struct nbd_memory *memory = *state;
    void *all = nbd_memory_take(memory, BYTES);
    assert_ptr_equal(all, memory->base);
    assert_null(nbd_memory_take(memory, 1));
    nbd_memory_give(memory, all, BYTES);
    assert_non_null(nbd_memory_take(memory, BYTES));
}

static void page_by_page(void **state)
{
    struct nbd_memory *memory = *state;
    for (unsigned i = 0; i < NBD_MEMORY_PAGES; i++)
        assert_non_null(nbd_memory_take(memory, 1));
    assert_null(nbd_memory_take(memory, 1));
    nbd_memory_give(memory, memory->base + 7 * NBD_PAGE, NBD_PAGE);
    nbd_memory_give(memory, memory->base + 9 * NBD_PAGE, NBD_PAGE);
    assert_null(nbd_memory_take(memory, 2 * NBD_PAGE));
    nbd_memory_give(memory, memory->base + 8 * NBD_PAGE, NBD_PAGE);
    assert_ptr_equal(nbd_memory_take(memory, 2 * NBD_PAGE + 1), memory->base + 7 * NBD_PAGE);
}

struct piece {
    uint8_t *at;
    size_t length;
    uint8_t stamp;
};

static void take_and_stamp(struct nbd_memory *memory, struct piece *piece, unsigned *seed)
{
    piece->length = 1 + (size_t)rand_r(seed) % (rand_r(seed) % 8 ? 3 * NBD_PAGE : 128 * NBD_PAGE);
    piece->at = nbd_memory_take(memory, piece->length);
    if (!piece->at)
        return;
    assert_true(is_aligned((uintptr_t)piece->at, NBD_PAGE));
    assert_true(piece->at >= memory->base && piece->at + piece->length <= memory->base + BYTES);
    piece->stamp = (uint8_t)rand_r(seed);
    memset(piece->at, piece->stamp, piece->length);
}

static void check_and_give(struct nbd_memory *memory, struct piece *piece)
{
    for (size_t i = 0; i < piece->length; i += 509)
        assert_int_equal(piece->at[i], piece->stamp);
    nbd_memory_give(memory, piece->at, piece->length);
    piece->at = NULL;
}

static void random_pieces(void **state)
{
    struct nbd_memory *memory = *state;
    unsigned seed = (unsigned)time(NULL);
    struct piece pieces[PIECES] = {0};
    print_message("seed %u\n", seed);
    for (unsigned turn = 0; turn < 20000; turn++) {
        struct piece *piece = &pieces[(unsigned)rand_r(&seed) % PIECES];
        if (piece->at)
            check_and_give(memory, piece);
        else
            take_and_stamp(memory, piece, &seed);
    }
    for (unsigned i = 0; i < PIECES; i++) {
        if (pieces[i].at)
            check_and_give(memory, &pieces[i]);
    }
    assert_non_null(nbd_memory_take(memory, BYTES));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(whole, setup, teardown),
        cmocka_unit_test_setup_teardown(page_by_page, setup, teardown),
        cmocka_unit_test_setup_teardown(random_pieces, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
