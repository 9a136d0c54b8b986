// SPDX-License-Identifier: Apache-2.0
/* The seam: it sees everything, shortens, fails, replaces results, holds and reorders; loop and blocking forms alike. */
#include "helpers.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backends/io/seam.h"

#define SIZE 65536u

struct watcher {
    struct io_seam seam; /* first */
    unsigned before, after, kinds[SEAM_TRUNCATE + 1];
    uint64_t transferred; /* bytes that before() saw */
    unsigned shorten;     /* let only so many bytes pass at a time */
    int fail;             /* fail before */
    int replace;          /* result instead of success */
    struct io_op *held[16];
    unsigned holding, held_count;
    struct io_seam_event last;
};

static int watcher_before(struct io_seam *seam, const struct io_seam_event *event)
{
    struct watcher *w = (struct watcher *)seam;
    w->before++;
    w->kinds[event->kind]++;
    w->last = *event;
    uint64_t sum = 0;
    for (unsigned i = 0; i < event->iovcnt; i++)
        sum += event->iov[i].iov_len;
    if (event->iovcnt)
        assert_int_equal(sum, event->length);
    if (w->fail)
        return w->fail;
    return (int)w->shorten;
}

static int watcher_after(struct io_seam *seam, const struct io_seam_event *event, int result)
{
    struct watcher *w = (struct watcher *)seam;
    w->after++;
    w->last = *event;
    return w->replace && result == 0 ? w->replace : result;
}

static bool watcher_hold(struct io_seam *seam, struct io_loop *loop, struct io_op *op)
{
    struct watcher *w = (struct watcher *)seam;
    (void)loop;
    if (!w->holding)
        return false;
    w->held[w->held_count++] = op;
    return true;
}

static struct watcher watcher_new(void)
{
    return (struct watcher){.seam = {watcher_before, watcher_after, watcher_hold}};
}

static uint8_t *buffer_new(void)
{
    void *p = NULL;
    assert_int_equal(posix_memalign(&p, 4096, SIZE), 0);
    return p;
}

/* `skew` bytes off the grid, in pieces of `shorten`. */
static void transfer(struct io_loop *loop, bool buffered, unsigned skew, unsigned shorten)
{
    struct io_file *file = scratch_file(NULL, buffered);
    struct watcher w = watcher_new();
    uint8_t *a = buffer_new();
    uint8_t *b = buffer_new();
    size_t length = SIZE - 2 * (size_t)skew;
    w.shorten = shorten;
    io_file_set_seam(file, &w.seam);
    pattern(a, SIZE, 1);
    struct waited op;
    waited_init(&op, IO_WRITE, file, skew, length);
    waited_buffer(&op, a, 4096);
    waited_buffer(&op, a + 4096, length - 4096);
    assert_int_equal(waited_run(loop, &op), 0);
    assert_int_equal(w.after, 1);
    assert_int_equal(w.last.length, length);
    if (shorten && !skew)
        assert_true(w.before >= SIZE / ((shorten + 511) / 512 * 512));
    assert_int_equal(op_read(loop, file, b, length, skew), 0);
    assert_memory_equal(a, b, length);
    memset(b, 0, SIZE);
    assert_int_equal(io_file_read(file, b, length, skew), 0);
    assert_memory_equal(a, b, length);
    assert_true(w.last.blocking);
    pattern(a, SIZE, 2);
    assert_int_equal(io_file_write(file, a, length, skew), 0);
    assert_int_equal(op_read(loop, file, b, length, skew), 0);
    assert_memory_equal(a, b, length);
    io_file_set_seam(file, NULL);
    (void)io_file_close(file);
    free(a);
    free(b);
}

static void short_transfers_are_finished(void **state)
{
    struct io_loop *loop = loop_new(state, 0);
    for (int buffered = 0; buffered < 2; buffered++) {
        transfer(loop, buffered, 0, 0);
        transfer(loop, buffered, 0, 1000);
        transfer(loop, buffered, 0, 4096);
        transfer(loop, buffered, 0, 100);
        transfer(loop, buffered, 7, 0);
        transfer(loop, buffered, 7, 3000);
    }
    (void)io_loop_destroy(loop);
}

static void every_kind_passes_and_can_fail(void **state)
{
    struct io_loop *loop = loop_new(state, 0);
    struct io_file *file = scratch_file(NULL, false);
    struct watcher w = watcher_new();
    uint8_t *a = buffer_new();
    memset(a, 7, SIZE);
    assert_int_equal(io_file_write(file, a, SIZE, 0), 0);
    io_file_set_seam(file, &w.seam);
    static const enum io_kind kinds[] = {IO_READ, IO_WRITE, IO_FLUSH, IO_DISCARD, IO_ZERO};
    for (int mode = 0; mode < 3; mode++) {
        w.fail = mode == 1 ? -ENOSPC : 0;
        w.replace = mode == 2 ? -EIO : 0;
        int expected = mode == 1 ? -ENOSPC : mode == 2 ? -EIO : 0;
        int flushed = mode ? -ENOSPC : 0; /* the first error stays */
        for (int i = 0; i < 5; i++) {
            struct waited op;
            waited_init(&op, kinds[i], file, 4096, kinds[i] == IO_FLUSH ? 0 : 4096);
            waited_buffer(&op, a, 4096);
            assert_int_equal(waited_run(loop, &op), kinds[i] == IO_FLUSH ? flushed : expected);
        }
        assert_int_equal(io_file_read(file, a, 4096, 0), expected);
        assert_int_equal(io_file_write(file, a, 4096, 0), expected);
        assert_int_equal(io_file_flush(file), flushed);
        assert_int_equal(io_file_discard(file, 0, 4096), expected);
        assert_int_equal(io_file_zero(file, 0, 4096), expected);
        assert_int_equal(io_file_allocate(file, SIZE, 4096), expected);
        assert_int_equal(io_file_truncate(file, SIZE), expected);
    }
    for (int kind = SEAM_READ; kind <= SEAM_TRUNCATE; kind++)
        assert_int_equal(w.kinds[kind], kind <= SEAM_ZERO ? 6 : 3);
    assert_int_equal(w.before, w.after);
    io_file_set_seam(file, NULL);
    (void)io_loop_destroy(loop);
    (void)io_file_close(file);
    free(a);
}

static void held_operations_leave_in_any_order(void **state)
{
    struct io_loop *loop = loop_new(state, 0);
    struct io_file *file = scratch_file(NULL, false);
    struct watcher w = watcher_new();
    uint8_t *a = buffer_new();
    struct waited ops[4];
    w.holding = 1;
    io_file_set_seam(file, &w.seam);
    for (unsigned i = 0; i < 4; i++) {
        memset(a + 4096 * i, (int)i + 1, 4096);
        waited_init(&ops[i], IO_WRITE, file, 0, 4096);
        waited_buffer(&ops[i], a + 4096 * i, 4096);
        io_submit(loop, &ops[i].op);
    }
    assert_true(io_loop_turn(loop, 0) >= 0);
    assert_int_equal(w.held_count, 4);
    assert_int_equal(w.before, 0);
    static const unsigned order[] = {3, 1, 0, 2};
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(ops[order[i]].calls, 0);
        io_seam_release(loop, w.held[order[i]]);
        waited_wait(loop, &ops[order[i]]);
        assert_int_equal(ops[order[i]].result, 0);
    }
    uint8_t byte = 0;
    assert_int_equal(io_file_read(file, &byte, 1, 4095), 0);
    assert_int_equal(byte, 3);
    io_file_set_seam(file, NULL);
    (void)io_loop_destroy(loop);
    (void)io_file_close(file);
    free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(short_transfers_are_finished),
        cmocka_unit_test(every_kind_passes_and_can_fail),
        cmocka_unit_test(held_operations_leave_in_any_order),
    };
    return RUN_ON_ENGINES(tests);
}
