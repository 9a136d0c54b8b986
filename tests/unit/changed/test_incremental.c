// SPDX-License-Identifier: Apache-2.0
/* Incremental files: made, read by qemu-img, applied, refused. */
#include "history.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "provisioner/blk/incremental.h"

#define NOTE "platter 1 base s-1 target s-2"

static int open_fd(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    return fd;
}

static void close_all(int *fds, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (fds[i] >= 0)
            (void)close(fds[i]);
}

/* The formats of layers `top` down to 0 behind those in `list`, their files behind fds[*count]. */
static void add_chain(const struct kind *kind, unsigned top, json_t *list, int *fds, size_t *count)
{
    for (unsigned i = top + 1; i-- > 0;) {
        fds[(*count)++] = open_fd(layer_path(i), O_RDONLY);
        assert_int_equal(json_array_append_new(list, json_pack("{s:s}", "format", layer_format(kind, i))), 0);
    }
}

/* What changed from layer `base` to layer `top` into the file `name`. */
static int export_since(const struct kind *kind, unsigned base, unsigned top, const char *name, struct error *err)
{
    int fds[LAYERS_MAX];
    size_t count = 0;
    char label[32];
    json_t *layers = json_array(), *answer = json_object();
    (void)snprintf(label, sizeof(label), "layer-%u", base);
    add_chain(kind, top, layers, fds, &count);
    fds[count++] = open_fd(scratch(name), O_RDWR | O_CREAT | O_TRUNC);
    json_t *request = json_pack("{s:o, s:i, s:{s:s, s:b, s:s, s:s, s:s}}", "layers", layers, "since", (int)(top - base),
                                "to", "format", "qcow2", "extended_l2", kind->extended_l2, "backing", label,
                                "backing_format", layer_format(kind, base), "note", NOTE);
    int r = incremental_export(request, fds, count, NULL, answer, err);
    close_all(fds, count);
    json_decref(request);
    json_decref(answer);
    return r;
}

/* Make the file "replica" an empty image over layer `base`. */
static void make_replica(const struct kind *kind, unsigned base, uint64_t size)
{
    char label[32];
    struct image_create_options options = {.size = size, .backing = label, .backing_format = layer_format(kind, base)};
    (void)snprintf(label, sizeof(label), "layer-%u", base);
    (void)close(open_fd(scratch("replica"), O_RDWR | O_CREAT | O_TRUNC));
    struct io_file *file = file_open(scratch("replica"), true);
    assert_int_equal(image_create(file, "qcow2", &options, NULL), 0);
    (void)io_file_close(file);
}

struct import {
    const char *file, *note;
    uint64_t base_size, size;
};

static int import_onto(const struct kind *kind, unsigned base, const struct import *import, struct error *err)
{
    int fds[LAYERS_MAX];
    size_t count = 2;
    json_t *layers = json_pack("[{s:s}, {s:s}]", "format", "qcow2", "format", "qcow2"), *answer = json_object();
    fds[0] = open_fd(scratch(import->file), O_RDONLY);
    fds[1] = open_fd(scratch("replica"), O_RDWR);
    add_chain(kind, base, layers, fds, &count);
    json_t *request = json_pack("{s:o, s:s, s:I, s:I, s:i}", "layers", layers, "note", import->note, "base_size",
                                (json_int_t)import->base_size, "size", (json_int_t)import->size, "unchanged", 1);
    int r = incremental_import(request, fds, count, NULL, answer, err);
    close_all(fds, count);
    json_decref(request);
    json_decref(answer);
    return r;
}

/* What "replica" over layer `base` reads as. */
static void read_replica(const struct kind *kind, unsigned base, uint64_t size, uint8_t *content)
{
    struct image_layer layers[LAYERS_MAX] = {{"qcow2", file_open(scratch("replica"), false)}};
    struct image *image = NULL;
    struct image_geometry geometry;
    struct client client;
    for (unsigned i = 0; i <= base; i++)
        layers[i + 1] = (struct image_layer){layer_format(kind, base - i), file_open(layer_path(base - i), false)};
    assert_int_equal(image_open(layers, base + 2, &(struct image_options){.read_only = true}, &image, NULL), 0);
    image_geometry(image, &geometry);
    assert_int_equal(geometry.size, size);
    client_open(&client, image);
    assert_int_equal(client_op(&client, IMAGE_READ, 0, content, size), 0);
    client_close(&client);
    assert_int_equal(image_close(image, NULL), 0);
}

static void run(const char *command)
{
    if (system(command) != 0)
        fail_msg("%s", command);
}

/* The file over the base is the target for qemu-img, too. */
static void ask_qemu(unsigned base, unsigned top, const char *format)
{
    char command[2048];
    (void)snprintf(command, sizeof(command),
                   "cd '%s' && qemu-img rebase -u -f qcow2 -F %s -b layer-%u delta && qemu-img check -q delta && "
                   "qemu-img compare -q -f qcow2 -F qcow2 delta layer-%u",
                   scratch(""), format, base, top);
    run(command);
}

static void byte_for_byte(void **state)
{
    static uint8_t content[HISTORY_SIZE];
    unsigned seed = history_seed();
    (void)state;
    for (unsigned i = 0; i < kinds_count; i++) {
        struct history *h = history_create(&kinds[i], seed + i);
        for (unsigned top = 1; top < HISTORY_LAYERS; top++) {
            for (unsigned base = top % 2; base < top; base += 2) {
                struct error err = ERROR_INIT;
                struct import import = {"delta", NOTE, h->size[base], h->size[top]};
                if (export_since(h->kind, base, top, "delta", &err) < 0)
                    fail_msg("export %u to %u: %s", base, top, err.message);
                make_replica(h->kind, base, h->size[base]);
                if (import_onto(h->kind, base, &import, &err) < 0)
                    fail_msg("import %u to %u: %s", base, top, err.message);
                read_replica(h->kind, base, h->size[top], content);
                assert_memory_equal(content, h->content[top], h->size[top]);
                assert_true(check_image(scratch("replica"), false));
                ask_qemu(base, top, layer_format(h->kind, base));
            }
        }
        h = history_destroy(h);
    }
}

static void expect_refusal(const struct kind *kind, const struct import *import, int number, const char *code)
{
    struct error err = ERROR_INIT;
    static uint8_t content[HISTORY_SIZE];
    assert_int_equal(import_onto(kind, 0, import, &err), number);
    if (code && strcmp(err.code, code) != 0)
        fail_msg("code '%s', not '%s': %s", err.code, code, err.message);
    read_replica(kind, 0, import->base_size, content);
    assert_int_equal(content[100], 0x11); /* still the base */
}

static void write_layer(const struct kind *kind, unsigned layer, uint64_t offset, uint64_t length, int byte)
{
    static uint8_t buffer[1 << 20];
    struct client client;
    struct image *image = chain_open(kind, layer, false);
    client_open(&client, image);
    memset(buffer, byte, length);
    assert_int_equal(client_op(&client, IMAGE_WRITE, offset, buffer, length), 0);
    client_close(&client);
    assert_int_equal(image_close(image, NULL), 0);
}

static void damage(const char *from, const char *to, off_t truncate_at, off_t at)
{
    char command[1024];
    (void)snprintf(command, sizeof(command), "cp '%s' '%s'", scratch(from), scratch(to));
    run(command);
    int fd = open_fd(scratch(to), O_RDWR);
    if (truncate_at)
        assert_int_equal(ftruncate(fd, truncate_at), 0);
    if (at)
        assert_int_equal(pwrite(fd, "\x00\x7f\xff\xff\xff\xff\x00\x00", 8, at), 8);
    (void)close(fd);
}

static void refusals(void **state)
{
    const struct kind *kind = &kinds[2];
    const uint64_t size = UINT64_C(1) << 20;
    struct error err = ERROR_INIT;
    (void)state;
    layer_create(kind, 0, size);
    layer_create(kind, 1, size);
    write_layer(kind, 0, 0, size, 0x11);
    write_layer(kind, 1, 0, 65536, 0x22);
    assert_int_equal(export_since(kind, 0, 1, "delta", &err), 0);
    make_replica(kind, 0, size);

    expect_refusal(kind, &(struct import){"delta", "another", size, size}, -EINVAL, "wrong-file");
    expect_refusal(kind, &(struct import){"delta", NOTE, size, size + 65536}, -EINVAL, "size-mismatch");
    expect_refusal(kind, &(struct import){"layer-1", NOTE, size, size}, -EINVAL, "wrong-file");
    damage("delta", "cut", 5 << 16, 0);
    expect_refusal(kind, &(struct import){"cut", NOTE, size, size}, -EUCLEAN, NULL);
    damage("delta", "no-image", 0, 1);
    expect_refusal(kind, &(struct import){"no-image", NOTE, size, size}, -EUCLEAN, "corrupt-image");
    /* header, refcount table, refcount block, L1: its first entry points to the end of the world */
    damage("delta", "wild", 0, 3 << 16);
    expect_refusal(kind, &(struct import){"wild", NOTE, size, size}, -EUCLEAN, NULL);

    make_replica(kind, 0, size - 65536);
    struct import import = {"delta", NOTE, size, size};
    assert_int_equal(import_onto(kind, 0, &import, &err), -EINVAL);
    assert_string_equal(err.code, "size-mismatch");
    make_replica(kind, 0, size);
    assert_int_equal(import_onto(kind, 0, &import, &err), 0);
    /* Now it is no longer the base. */
    assert_int_equal(import_onto(kind, 0, &import, &err), -EBUSY);
    assert_string_equal(err.code, "changed-since");
}

/* One small change in a large image makes a small file; a change to zeros holds no data at all. */
static void sparse(void **state)
{
    const struct kind *kind = &kinds[2];
    const uint64_t size = UINT64_C(64) << 30;
    struct client client;
    struct stat st;
    (void)state;
    layer_create(kind, 0, size);
    layer_create(kind, 1, size);
    write_layer(kind, 0, 0, 1 << 20, 0x11);
    write_layer(kind, 1, size - 4096, 4096, 0x22);
    struct image *image = chain_open(kind, 1, false);
    client_open(&client, image);
    assert_int_equal(client_op(&client, IMAGE_WRITE_ZEROES, 0, NULL, 1 << 20), 0);
    client_close(&client);
    assert_int_equal(image_close(image, NULL), 0);
    assert_int_equal(export_since(kind, 0, 1, "delta", NULL), 0);
    assert_int_equal(stat(scratch("delta"), &st), 0);
    assert_true(st.st_blocks * 512 < 2 << 20);
    struct image_info info = {0};
    struct io_file *file = file_open(scratch("delta"), false);
    assert_int_equal(image_probe(file, "qcow2", &info, NULL), 0);
    (void)io_file_close(file);
    assert_string_equal(info.note, NOTE);
    assert_string_equal(info.backing, "layer-0");
    assert_int_equal(info.size, size);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(byte_for_byte),
        cmocka_unit_test(refusals),
        cmocka_unit_test(sparse),
    };
    return run_on_engines(tests, sizeof(tests) / sizeof(tests[0]));
}
