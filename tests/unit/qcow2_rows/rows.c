// SPDX-License-Identifier: Apache-2.0
#include "rows.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backends/format/qcow2/reserve.h"
#include "common/bytes.h"
#include "common/checked.h"

/* ---- commands ------------------------------------------------------------------------------------------------ */

static int run(char *ret_text, size_t size, const char *fmt, va_list args)
{
    char line[1024];
    (void)vsnprintf(line, sizeof(line) - 6, fmt, args);
    (void)strcat(line, " 2>&1");
    FILE *pipe = popen(line, "r");
    assert_non_null(pipe);
    size_t length = fread(ret_text, 1, size - 1, pipe);
    ret_text[length] = 0;
    char rest[256];
    while (fread(rest, 1, sizeof(rest), pipe) > 0)
        continue;
    int status = pclose(pipe);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int command(char *ret_text, size_t size, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    int status = run(ret_text, size, fmt, args);
    va_end(args);
    return status;
}

void command_or_fail(const char *fmt, ...)
{
    char text[4096];
    va_list args;
    va_start(args, fmt);
    int status = run(text, sizeof(text), fmt, args);
    va_end(args);
    if (status != 0 || strstr(text, "failed"))
        fail_msg("%s: %d: %s", fmt, status, text);
}

bool have_qemu_img(void)
{
    char text[256];
    if (command(text, sizeof(text), "qemu-img --version") == 0 && command(text, sizeof(text), "qemu-io --version") == 0)
        return true;
    (void)fprintf(stderr, "skipped: qemu-img and qemu-io are not installed\n");
    return false;
}

int qemu_check(const char *path)
{
    char text[4096];
    int status = command(text, sizeof(text), "qemu-img check '%s'", path);
    if (status != 0 && status != 3)
        (void)fprintf(stderr, "qemu-img check: %d\n%s\n", status, text);
    return status;
}

/* ---- files --------------------------------------------------------------------------------------------------- */

void peek(const char *path, uint64_t offset, void *bytes, size_t length)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    memset(bytes, 0, length);
    assert_true(pread(fd, bytes, length, (off_t)offset) >= 0);
    (void)close(fd);
}

void poke(const char *path, uint64_t offset, const void *bytes, size_t length)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, length, (off_t)offset), length);
    (void)close(fd);
}

uint64_t peek_be64(const char *path, uint64_t offset)
{
    uint8_t bytes[8];
    peek(path, offset, bytes, sizeof(bytes));
    return load_be64(bytes);
}

void poke_be64(const char *path, uint64_t offset, uint64_t value)
{
    uint8_t bytes[8];
    store_be64(bytes, value);
    poke(path, offset, bytes, sizeof(bytes));
}

static struct stat stat_of(const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return st;
}

uint64_t file_size(const char *path)
{
    return (uint64_t)stat_of(path).st_size;
}

uint64_t file_space(const char *path)
{
    return (uint64_t)stat_of(path).st_blocks * 512;
}

uint64_t l2_entry_place(const char *path, uint64_t offset)
{
    uint8_t header[48];
    peek(path, 0, header, sizeof(header));
    unsigned cluster_bits = load_be32(header + 20);
    unsigned l2_bits = cluster_bits - 3;
    uint64_t l1 = load_be64(header + 40) + (offset >> (cluster_bits + l2_bits)) * 8;
    uint64_t l2 = peek_be64(path, l1) & QCOW2_OFFSET_MASK;
    assert_true(l2 > 0);
    return l2 + ((offset >> cluster_bits) & ((UINT64_C(1) << l2_bits) - 1)) * 8;
}

/* ---- life ---------------------------------------------------------------------------------------------------- */

static int setup_in(const char *base, void **state)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    assert_non_null(rig);
    (void)snprintf(rig->directory, sizeof(rig->directory), "%.40s/platter-rows-XXXXXX", base);
    assert_non_null(mkdtemp(rig->directory));
    (void)snprintf(rig->path, sizeof(rig->path), "%s/image.qcow2", rig->directory);
    (void)snprintf(rig->below, sizeof(rig->below), "%s/below.raw", rig->directory);
    (void)snprintf(rig->copy, sizeof(rig->copy), "%s/copy.qcow2", rig->directory);
    assert_int_equal(io_loop_create(&(struct io_loop_options){0}, &rig->loop, NULL), 0);
    *state = rig;
    return 0;
}

int rig_setup(void **state)
{
    const char *base = getenv("TMPDIR");
    return setup_in(base ? base : "/tmp", state);
}

int rig_setup_in_memory(void **state)
{
    return access("/dev/shm", W_OK) == 0 ? setup_in("/dev/shm", state) : rig_setup(state);
}

int rig_teardown(void **state)
{
    struct rig *rig = *state;
    (void)rig_close(rig);
    (void)io_loop_destroy(rig->loop);
    (void)unlink(rig->path);
    (void)unlink(rig->below);
    (void)unlink(rig->copy);
    (void)rmdir(rig->directory);
    free(rig);
    return 0;
}

struct io_file *rig_file(const char *path)
{
    struct io_file *file = NULL;
    struct io_file_options options = {.writable = true};
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(io_file_open(fd, &options, &file, NULL), 0);
    return file;
}

static void make_below(struct rig *rig, uint64_t size)
{
    FILE *f = fopen(rig->below, "w");
    assert_non_null(f);
    for (uint64_t i = 0; i < size; i++)
        (void)fputc(0xbb, f);
    assert_int_equal(fclose(f), 0);
}

void rig_create(struct rig *rig, const struct image_create_options *options)
{
    struct image_create_options o = *options;
    struct error err = ERROR_INIT;
    if (rig->overlay) {
        make_below(rig, o.size);
        o.backing = "below.raw";
        o.backing_format = "raw";
    }
    (void)unlink(rig->path);
    struct io_file *file = rig_file(rig->path);
    if (image_create(file, "qcow2", &o, &err) < 0)
        fail_msg("%s", err.message);
    (void)io_file_close(file);
}

int rig_try_open(struct rig *rig, bool read_only, struct error *err)
{
    struct image_layer layers[2] = {{"qcow2", rig_file(rig->path)}, {"raw", NULL}};
    struct image_options options = {.read_only = read_only, .cache_bytes = rig->cache_bytes};
    if (rig->overlay)
        layers[1].file = rig_file(rig->below);
    if (rig->seam)
        io_file_set_seam(layers[0].file, rig->seam);
    int r = image_open(layers, rig->overlay ? 2 : 1, &options, &rig->image, err);
    if (r < 0) {
        (void)io_file_close(layers[0].file);
        (void)io_file_close(layers[1].file);
        return r;
    }
    rig->q = (struct qcow2 *)rig->image->layers[0];
    assert_int_equal(image_queue_create(rig->image, rig->loop, &rig->queue, NULL), 0);
    return 0;
}

void rig_open(struct rig *rig)
{
    struct error err = ERROR_INIT;
    if (rig_try_open(rig, false, &err) < 0)
        fail_msg("%s", err.message);
}

int rig_close(struct rig *rig)
{
    struct image *image = rig->image;
    if (rig->queue)
        rig->queue = image_queue_destroy(rig->queue);
    rig->image = NULL;
    rig->q = NULL;
    return image_close(image, NULL);
}

void rig_close_clean(struct rig *rig)
{
    assert_int_equal(rig_close(rig), 0);
    assert_int_equal(qemu_check(rig->path), 0);
}

int rig_resize(struct rig *rig, uint64_t size)
{
    /* This thread is the loop's and the control thread: nobody would turn the loop meanwhile. */
    rig->queue = image_queue_destroy(rig->queue);
    int r = image_resize(rig->image, size, NULL);
    assert_int_equal(image_queue_create(rig->image, rig->loop, &rig->queue, NULL), 0);
    return r;
}

void rig_copy(struct rig *rig)
{
    command_or_fail("cp --sparse=always '%s' '%s'", rig->path, rig->copy);
}

void rig_settle(struct rig *rig)
{
    struct allocator *a = rig->q->allocator;
    for (bool busy = true; busy;) {
        (void)pthread_mutex_lock(&a->lock);
        busy = a->refilling || a->releasing || a->growing;
        (void)pthread_mutex_unlock(&a->lock);
        assert_true(io_loop_turn(rig->loop, busy ? 1 : 0) >= 0);
    }
}

/* ---- requests ------------------------------------------------------------------------------------------------ */

struct ending {
    struct image_request request; /* first */
    bool done;
    int result;
};

static void request_done(struct image_request *request, int result)
{
    struct ending *ending = (struct ending *)request;
    ending->done = true;
    ending->result = result;
}

static int submit(struct rig *rig, enum image_op op, uint64_t offset, uint64_t length, void *buffer)
{
    struct iovec iov = {.iov_base = buffer, .iov_len = length};
    struct ending ending = {.request = {.op = op,
                                        .offset = offset,
                                        .length = length,
                                        .iov = buffer ? &iov : NULL,
                                        .iovcnt = buffer ? 1 : 0,
                                        .done = request_done}};
    image_submit(rig->queue, &ending.request);
    while (!ending.done)
        assert_true(io_loop_turn(rig->loop, -1) >= 0);
    return ending.result;
}

int rig_io(struct rig *rig, enum image_op op, uint64_t offset, uint64_t length, int byte)
{
    if (op != IMAGE_WRITE && op != IMAGE_READ)
        return submit(rig, op, offset, length, NULL);
    void *buffer = aligned_alloc(4096, align_up(length, 4096));
    assert_non_null(buffer);
    memset(buffer, byte, length);
    int r = submit(rig, op, offset, length, buffer);
    free(buffer);
    return r;
}

void rig_write(struct rig *rig, uint64_t offset, uint64_t length, int byte)
{
    assert_int_equal(rig_io(rig, IMAGE_WRITE, offset, length, byte), 0);
}

void rig_discard(struct rig *rig, uint64_t offset, uint64_t length)
{
    assert_int_equal(rig_io(rig, IMAGE_DISCARD, offset, length, 0), 0);
}

void rig_flush(struct rig *rig)
{
    assert_int_equal(rig_io(rig, IMAGE_FLUSH, 0, 0, 0), 0);
}

void rig_expect(struct rig *rig, uint64_t offset, uint64_t length, int byte)
{
    uint8_t *buffer = aligned_alloc(4096, align_up(length, 4096));
    assert_non_null(buffer);
    memset(buffer, ~byte, length);
    assert_int_equal(submit(rig, IMAGE_READ, offset, length, buffer), 0);
    for (uint64_t i = 0; i < length; i++)
        if (buffer[i] != (uint8_t)byte)
            fail_msg("byte at %llu is 0x%02x, not 0x%02x", (unsigned long long)(offset + i), buffer[i], (uint8_t)byte);
    free(buffer);
}
