// SPDX-License-Identifier: Apache-2.0
/* Image locks against each other and, both ways, against qemu's own tools. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "provisioner/node/image_lock.h"

static char path[] = "/tmp/platter-lock.XXXXXX";

static int make_image(void **state)
{
    (void)state;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 1 << 20), 0);
    return close(fd);
}

static int remove_image(void **state)
{
    (void)state;
    return unlink(path);
}

static int open_image(void)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

static void modes_exclude_each_other(void **state)
{
    (void)state;
    static const struct {
        enum image_lock_mode first, second;
        int result;
    } cases[] = {
        {IMAGE_LOCK_READER, IMAGE_LOCK_READER, 0},
        {IMAGE_LOCK_READER, IMAGE_LOCK_WRITER, -EBUSY},
        {IMAGE_LOCK_WRITER, IMAGE_LOCK_READER, -EBUSY},
        {IMAGE_LOCK_WRITER, IMAGE_LOCK_WRITER, -EBUSY},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        int a = open_image(), b = open_image();
        struct error err = ERROR_INIT;
        assert_int_equal(image_lock_take(a, cases[i].first, "a", &err), 0);
        assert_int_equal(image_lock_take(b, cases[i].second, "b", &err), cases[i].result);
        if (cases[i].result < 0) {
            assert_string_equal(error_code_word(&err), "image-in-use");
            image_lock_release(a);
            assert_int_equal(image_lock_take(b, cases[i].second, "b", &err), 0);
        }
        (void)close(a);
        (void)close(b);
    }
}

static void a_duplicate_keeps_the_lock(void **state)
{
    (void)state;
    int a = open_image(), b = open_image();
    assert_int_equal(image_lock_take(a, IMAGE_LOCK_WRITER, "a", NULL), 0);
    int copy = fcntl(a, F_DUPFD_CLOEXEC, 0);
    (void)close(a);
    assert_int_equal(image_lock_take(b, IMAGE_LOCK_WRITER, "b", NULL), -EBUSY);
    (void)close(copy);
    assert_int_equal(image_lock_take(b, IMAGE_LOCK_WRITER, "b", NULL), 0);
    (void)close(b);
}

/* A reader becomes the writer of a file that another one follows, and a reader again. */
static void a_lock_changes(void **state)
{
    (void)state;
    int a = open_image(), b = open_image(), c = open_image();
    struct error err = ERROR_INIT;
    assert_int_equal(image_lock_take(a, IMAGE_LOCK_READER, "a", &err), 0);
    assert_int_equal(image_lock_take(b, IMAGE_LOCK_READER, "b", &err), 0);
    assert_int_equal(image_lock_change(a, IMAGE_LOCK_READER, IMAGE_LOCK_WRITER, "a", &err), -EBUSY);
    assert_string_equal(error_code_word(&err), "image-in-use");
    assert_int_equal(image_lock_take(c, IMAGE_LOCK_READER, "c", &err), 0); /* nothing of the writer's lock is left */
    image_lock_release(b);
    image_lock_release(c);
    assert_int_equal(image_lock_take(c, IMAGE_LOCK_WRITER, "c", &err), -EBUSY); /* the reader's is */
    assert_int_equal(image_lock_take(b, IMAGE_LOCK_FOLLOWER, "b", &err), 0);
    assert_int_equal(image_lock_change(a, IMAGE_LOCK_READER, IMAGE_LOCK_WRITER, "a", &err), 0);
    assert_int_equal(image_lock_take(c, IMAGE_LOCK_READER, "c", &err), -EBUSY);
    assert_int_equal(image_lock_take(c, IMAGE_LOCK_WRITER, "c", &err), -EBUSY);
    assert_int_equal(image_lock_change(a, IMAGE_LOCK_WRITER, IMAGE_LOCK_READER, "a", &err), 0);
    assert_int_equal(image_lock_take(c, IMAGE_LOCK_READER, "c", &err), 0);
    (void)close(a);
    (void)close(b);
    (void)close(c);
}

static bool have_qemu_io(void)
{
    return system("qemu-io --version >/dev/null 2>&1") == 0;
}

/* Whether the shell command on the image ($0) fails; its output says "lock" then. */
static bool is_refused(const char *command)
{
    char line[512], text[4096];
    (void)snprintf(line, sizeof(line), "sh -c '%s' %s 2>&1", command, path);
    FILE *f = popen(line, "r");
    assert_non_null(f);
    size_t n = fread(text, 1, sizeof(text) - 1, f);
    text[n] = 0;
    int status = pclose(f);
    if (status != 0)
        assert_non_null(strstr(text, "lock"));
    return status != 0;
}

#define QEMU_WRITE "qemu-io -f raw -c \"write 0 4k\" $0"
/* Reads and wants nobody to write meanwhile (qemu-io -r would not mind). */
#define QEMU_READ "qemu-img convert -f raw -O raw $0 $0.out && rm $0.out"

static void qemu_respects_ours(void **state)
{
    (void)state;
    if (!have_qemu_io())
        skip();
    int fd = open_image();
    assert_false(is_refused(QEMU_WRITE));
    assert_int_equal(image_lock_take(fd, IMAGE_LOCK_WRITER, "a", NULL), 0);
    assert_true(is_refused(QEMU_WRITE));
    assert_true(is_refused(QEMU_READ));
    image_lock_release(fd);
    assert_int_equal(image_lock_take(fd, IMAGE_LOCK_READER, "a", NULL), 0);
    assert_true(is_refused(QEMU_WRITE));
    assert_false(is_refused(QEMU_READ));
    image_lock_release(fd);
    assert_false(is_refused(QEMU_WRITE));
    (void)close(fd);
}

/* qemu-io holding the image open until its input is closed: `in` is our end. */
static pid_t hold_by_qemu(const char *option, int *ret_in)
{
    int in[2], out[2];
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        (void)dup2(in[0], STDIN_FILENO);
        (void)dup2(out[1], STDOUT_FILENO);
        (void)execlp("qemu-io", "qemu-io", option, "-f", "qcow2", path, (char *)NULL);
        _exit(127);
    }
    (void)close(in[0]);
    (void)close(out[1]);
    /* A command answered: the image is open. */
    assert_int_equal(write(in[1], "length\n", 7), 7);
    char text[256];
    size_t got = 0;
    while (got < sizeof(text) - 1) {
        ssize_t n = read(out[0], text + got, sizeof(text) - 1 - got);
        assert_true(n > 0);
        got += (size_t)n;
        text[got] = 0;
        if (strstr(text, "MiB"))
            break;
    }
    (void)close(out[0]);
    *ret_in = in[1];
    return pid;
}

static void release_by_qemu(pid_t pid, int in)
{
    (void)close(in);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void we_respect_qemus(void **state)
{
    (void)state;
    if (!have_qemu_io())
        skip();
    /* Of a raw image qemu-io -r lets others write; of a qcow2 image it does not. */
    assert_false(is_refused("qemu-img create -f qcow2 $0 1M"));
    int in, fd = open_image();
    pid_t pid = hold_by_qemu("-n", &in);
    struct error err = ERROR_INIT;
    assert_int_equal(image_lock_take(fd, IMAGE_LOCK_WRITER, "disk.img", &err), -EBUSY);
    assert_non_null(strstr(err.message, "'disk.img' is in use"));
    assert_int_equal(image_lock_take(fd, IMAGE_LOCK_READER, "disk.img", &err), -EBUSY);
    release_by_qemu(pid, in);
    pid = hold_by_qemu("-r", &in);
    assert_int_equal(image_lock_take(fd, IMAGE_LOCK_WRITER, "disk.img", &err), -EBUSY);
    assert_int_equal(image_lock_take(fd, IMAGE_LOCK_READER, "disk.img", &err), 0);
    image_lock_release(fd);
    release_by_qemu(pid, in);
    assert_int_equal(image_lock_take(fd, IMAGE_LOCK_WRITER, "disk.img", &err), 0);
    (void)close(fd);
}

int main(void)
{
    (void)signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(modes_exclude_each_other), cmocka_unit_test(a_duplicate_keeps_the_lock),
        cmocka_unit_test(a_lock_changes),           cmocka_unit_test(qemu_respects_ours),
        cmocka_unit_test(we_respect_qemus),
    };
    return cmocka_run_group_tests(tests, make_image, remove_image);
}
