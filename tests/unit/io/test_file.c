// SPDX-License-Identifier: Apache-2.0
/* Operations on files, by the loop and by the blocking forms: same contents, any alignment, ends of files, zeros. */
#include "helpers.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIZE (1u << 20)

struct place {
    const char *directory;
    bool buffered;
};

/* A real file system directly, the same through the page cache, and tmpfs, which cannot zero ranges. */
static const struct place places[] = {{NULL, false}, {NULL, true}, {"/dev/shm", false}};

static void for_places(void **state, void (*run)(struct io_loop *loop, struct io_file *file))
{
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        struct io_loop *loop = loop_new(state, 0);
        struct io_file *file = scratch_file(places[i].directory, places[i].buffered);
        io_loop_register_file(loop, file);
        run(loop, file);
        io_loop_unregister_file(loop, file);
        (void)io_loop_destroy(loop);
        (void)io_file_close(file);
    }
}

static uint8_t *buffer_new(size_t size)
{
    void *p = NULL;
    assert_int_equal(posix_memalign(&p, 4096, size), 0);
    return p;
}

static void run_round_trip(struct io_loop *loop, struct io_file *file)
{
    uint8_t *a = buffer_new(SIZE);
    uint8_t *b = buffer_new(SIZE);
    pattern(a, SIZE, 1);
    assert_int_equal(op_write(loop, file, a, SIZE, 0), 0);
    struct waited w;
    waited_init(&w, IO_FLUSH, file, 0, 0);
    assert_int_equal(waited_run(loop, &w), 0);
    assert_int_equal(op_read(loop, file, b, SIZE, 0), 0);
    assert_memory_equal(a, b, SIZE);
    memset(b, 0, SIZE);
    assert_int_equal(io_file_read(file, b, SIZE, 0), 0);
    assert_memory_equal(a, b, SIZE);
    uint64_t length = 0;
    assert_int_equal(io_file_length(file, &length), 0);
    assert_int_equal(length, SIZE);
    free(a);
    free(b);
}

static void writes_are_read_back(void **state)
{
    for_places(state, run_round_trip);
}

static void run_vectors(struct io_loop *loop, struct io_file *file)
{
    uint8_t *a = buffer_new(SIZE);
    uint8_t *b = buffer_new(SIZE);
    pattern(a, SIZE, 2);
    struct waited w;
    waited_init(&w, IO_WRITE, file, 4096, 3 * 4096 + 77);
    waited_buffer(&w, a, 4096);
    waited_buffer(&w, a + 4096, 77);
    waited_buffer(&w, a + 4096 + 77, 2 * 4096);
    assert_int_equal(waited_run(loop, &w), 0);
    waited_init(&w, IO_READ, file, 4096, 3 * 4096 + 77);
    waited_buffer(&w, b + 1, 1);
    waited_buffer(&w, b + 2, 8000);
    waited_buffer(&w, b + 8002, 3 * 4096 + 77 - 8001);
    assert_int_equal(waited_run(loop, &w), 0);
    assert_memory_equal(a, b + 1, 3 * 4096 + 77);
    free(a);
    free(b);
}

static void vectors_of_any_shape(void **state)
{
    for_places(state, run_vectors);
}

/* Random unaligned operations against a byte array, through the loop and through the blocking forms. */
static void run_unaligned(struct io_loop *loop, struct io_file *file)
{
    uint8_t *model = buffer_new(SIZE);
    uint8_t *data = buffer_new(SIZE);
    pattern(model, SIZE, 3);
    assert_int_equal(op_write(loop, file, model, SIZE, 0), 0);
    srand(7);
    for (uint32_t i = 0; i < 300; i++) {
        uint64_t offset = (uint64_t)rand() % SIZE;
        uint64_t length = 1 + (uint64_t)rand() % (i % 10 ? 9000 : 400000);
        if (length > SIZE - offset)
            length = SIZE - offset;
        uint8_t *memory = data + (uint64_t)rand() % (SIZE - length + 1);
        bool blocking = rand() & 1;
        struct waited w;
        switch (rand() % 4) {
        case 0:
            pattern(memory, length, i);
            memcpy(model + offset, memory, length);
            assert_int_equal(blocking ? io_file_write(file, memory, length, offset)
                                      : op_write(loop, file, memory, length, offset),
                             0);
            break;
        case 1:
            memset(model + offset, 0, length);
            waited_init(&w, IO_ZERO, file, offset, length);
            assert_int_equal(blocking ? io_file_zero(file, offset, length) : waited_run(loop, &w), 0);
            break;
        case 2:
            memset(model + offset, 0, length);
            waited_init(&w, IO_DISCARD, file, offset, length);
            assert_int_equal(blocking ? io_file_discard(file, offset, length) : waited_run(loop, &w), 0);
            break;
        default:
            assert_int_equal(
                blocking ? io_file_read(file, memory, length, offset) : op_read(loop, file, memory, length, offset), 0);
            assert_memory_equal(memory, model + offset, length);
            break;
        }
    }
    assert_int_equal(op_read(loop, file, data, SIZE, 0), 0);
    assert_memory_equal(data, model, SIZE);
    uint64_t length = 0;
    assert_int_equal(io_file_length(file, &length), 0);
    assert_int_equal(length, SIZE);
    free(model);
    free(data);
}

static void any_offset_length_and_memory(void **state)
{
    for_places(state, run_unaligned);
}

static void run_end_of_file(struct io_loop *loop, struct io_file *file)
{
    uint8_t *a = buffer_new(16384);
    pattern(a, 16384, 4);
    assert_int_equal(io_file_write(file, a, 8192, 0), 0);
    assert_int_equal(io_file_truncate(file, 5000), 0);
    for (int blocking = 0; blocking < 2; blocking++) {
        for (int skew = 0; skew < 2; skew++) {
            uint8_t *b = buffer_new(16384 + 4096);
            memset(b, 0xee, 16384 + 4096);
            assert_int_equal(
                blocking ? io_file_read(file, b + skew, 16384, 0) : op_read(loop, file, b + skew, 16384, 0), 0);
            assert_memory_equal(a, b + skew, 5000);
            assert_true(all_zero(b + skew + 5000, 16384 - 5000));
            assert_int_equal(blocking ? io_file_read(file, b + skew, 4096, 1 << 20)
                                      : op_read(loop, file, b + skew, 4096, 1 << 20),
                             0);
            assert_true(all_zero(b + skew, 4096));
            free(b);
        }
    }
    struct waited w;
    waited_init(&w, IO_READ, file, 0, 16384);
    waited_buffer(&w, a, 4096);
    waited_buffer(&w, a + 8192, 8192);
    waited_buffer(&w, a + 4096, 4096);
    assert_int_equal(waited_run(loop, &w), 0);
    assert_true(all_zero(a + 8192 + 904, 8192 - 904));
    assert_true(all_zero(a + 4096, 4096));
    free(a);
}

static void beyond_the_end_are_zeros(void **state)
{
    for_places(state, run_end_of_file);
}

static void run_zero_keeps_size(struct io_loop *loop, struct io_file *file)
{
    uint8_t *a = buffer_new(65536);
    uint64_t length = 0;
    pattern(a, 65536, 5);
    assert_int_equal(io_file_write(file, a, 65536, 0), 0);
    struct waited w;
    waited_init(&w, IO_ZERO, file, 32768, 1 << 20);
    assert_int_equal(waited_run(loop, &w), 0);
    waited_init(&w, IO_ZERO, file, 1 << 20, 4096);
    assert_int_equal(waited_run(loop, &w), 0);
    waited_init(&w, IO_DISCARD, file, 0, 4096);
    assert_int_equal(waited_run(loop, &w), 0);
    assert_int_equal(io_file_zero(file, 65536 - 4096, 1 << 20), 0);
    assert_int_equal(io_file_length(file, &length), 0);
    assert_int_equal(length, 65536);
    uint8_t *b = buffer_new(65536);
    assert_int_equal(op_read(loop, file, b, 65536, 0), 0);
    assert_true(all_zero(b, 4096));
    assert_memory_equal(b + 4096, a + 4096, 32768 - 4096);
    assert_true(all_zero(b + 32768, 32768));
    assert_int_equal(io_file_allocate(file, 65536, 65536), 0);
    assert_int_equal(io_file_length(file, &length), 0);
    assert_int_equal(length, 131072);
    assert_int_equal(io_file_allocate(file, 0, 4096), 0);
    assert_int_equal(io_file_length(file, &length), 0);
    assert_int_equal(length, 131072);
    free(a);
    free(b);
}

static void zeroing_keeps_the_size_allocating_moves_it(void **state)
{
    for_places(state, run_zero_keeps_size);
}

static void run_extents(struct io_loop *loop, struct io_file *file)
{
    uint8_t *a = buffer_new(65536);
    bool data = true;
    uint64_t end = 0;
    pattern(a, 65536, 6);
    assert_int_equal(io_file_truncate(file, 1 << 20), 0);
    assert_int_equal(op_write(loop, file, a, 65536, 262144), 0);
    assert_int_equal(io_file_extent(file, 0, &data, &end), 0);
    assert_false(data);
    assert_int_equal(end, 262144);
    assert_int_equal(io_file_extent(file, 262144, &data, &end), 0);
    assert_true(data);
    assert_int_equal(end, 262144 + 65536);
    assert_int_equal(io_file_extent(file, 262144 + 65536, &data, &end), 0);
    assert_false(data);
    free(a);
}

static void extents_tell_data_from_holes(void **state)
{
    for_places(state, run_extents);
}

static void many_operations_at_once(void **state)
{
    enum { COUNT = 3000, BLOCK = 4096 };
    struct io_loop *loop = loop_new(state, 16);
    struct io_file *file = scratch_file(NULL, false);
    struct waited *w = calloc(COUNT, sizeof(*w));
    uint8_t *a = buffer_new((size_t)COUNT * BLOCK);
    uint8_t *b = buffer_new((size_t)COUNT * BLOCK);
    pattern(a, (size_t)COUNT * BLOCK, 8);
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < COUNT; i++) {
            waited_init(&w[i], pass ? IO_READ : IO_WRITE, file, (uint64_t)i * BLOCK, BLOCK);
            /* Every seventh needs a bounce. */
            if (pass && i % 7 == 0 && i)
                waited_buffer(&w[i], b + (size_t)i * BLOCK - 0, 1),
                    waited_buffer(&w[i], b + (size_t)i * BLOCK + 1, 4095);
            else
                waited_buffer(&w[i], (pass ? b : a) + (size_t)i * BLOCK, BLOCK);
            io_submit(loop, &w[i].op);
        }
        for (int i = 0; i < COUNT; i++) {
            waited_wait(loop, &w[i]);
            assert_int_equal(w[i].calls, 1);
            assert_int_equal(w[i].result, 0);
        }
    }
    assert_memory_equal(a, b, (size_t)COUNT * BLOCK);
    (void)io_loop_destroy(loop);
    (void)io_file_close(file);
    free(w);
    free(a);
    free(b);
}

static void odd_operations(void **state)
{
    struct io_loop *loop = loop_new(state, 0);
    struct io_file *file = scratch_file(NULL, false);
    struct waited w;
    waited_init(&w, IO_READ, file, 0, 0);
    assert_int_equal(waited_run(loop, &w), 0);
    waited_init(&w, IO_DISCARD, file, 0, 0);
    assert_int_equal(waited_run(loop, &w), 0);
    /* A descriptor that cannot be written. */
    char path[64];
    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", file->fd);
    struct io_file *frozen = NULL;
    struct io_file_options options = {.writable = false};
    struct error err = ERROR_INIT;
    assert_int_equal(io_file_open(open(path, O_RDONLY | O_CLOEXEC), &options, &frozen, &err), 0);
    uint8_t *a = buffer_new(4096);
    memset(a, 1, 4096);
    assert_int_equal(op_write(loop, frozen, a, 4096, 0), -EBADF);
    assert_int_equal(io_file_write(frozen, a, 4096, 0), -EBADF);
    options.writable = true;
    struct io_file *none = NULL;
    assert_int_equal(io_file_open(open(path, O_RDONLY | O_CLOEXEC), &options, &none, &err), -EACCES);
    int pipes[2];
    assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
    assert_int_equal(io_file_open(pipes[0], &options, &none, &err), -EINVAL);
    assert_int_equal(fcntl(pipes[0], F_GETFD), -1);
    (void)close(pipes[1]);
    assert_int_equal(io_file_use_page_cache(file), 0);
    assert_false(file->direct);
    assert_int_equal(op_write(loop, file, a, 100, 1), 0);
    uint64_t length = 0;
    assert_int_equal(io_file_length(file, &length), 0);
    assert_int_equal(length, 101);
    (void)io_file_close(frozen);
    (void)io_loop_destroy(loop);
    (void)io_file_close(file);
    free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_are_read_back),
        cmocka_unit_test(vectors_of_any_shape),
        cmocka_unit_test(any_offset_length_and_memory),
        cmocka_unit_test(beyond_the_end_are_zeros),
        cmocka_unit_test(zeroing_keeps_the_size_allocating_moves_it),
        cmocka_unit_test(extents_tell_data_from_holes),
        cmocka_unit_test(many_operations_at_once),
        cmocka_unit_test(odd_operations),
    };
    return RUN_ON_ENGINES(tests);
}
