// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "provisioner/node/copy.h"
#include "provisioner/node/process.h"
#include "provisioner/node/rights.h"

static char dir[64];

static int setup(void **state)
{
    (void)state;
    (void)strcpy(dir, "/tmp/platter-node.XXXXXX");
    return mkdtemp(dir) && chmod(dir, 0755) == 0 ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    char command[96];
    (void)snprintf(command, sizeof(command), "rm -rf --one-file-system %s", dir);
    return system(command);
}

static void tools_run_fail_hang_and_are_cancelled(void **state)
{
    (void)state;
    const char *const good[] = {"true", NULL};
    const char *const bad[] = {"sh", "-c", "echo the reason >&2; exit 3", NULL};
    const char *const hang[] = {"sleep", "100", NULL};
    const char *const missing[] = {"platter-no-such-tool", NULL};
    struct error err = ERROR_INIT;
    assert_int_equal(process_run(good, 10000, -1, &err), 0);
    assert_int_equal(process_run(bad, 10000, -1, &err), -EIO);
    assert_non_null(strstr(err.message, "the reason"));
    assert_int_equal(process_run(hang, 50, -1, &err), -ETIMEDOUT);
    assert_int_equal(process_run(missing, 10000, -1, &err), -ENOENT);
    int cancel = eventfd(1, EFD_CLOEXEC);
    assert_int_equal(process_run(hang, 60000, cancel, &err), -ECANCELED);
    (void)close(cancel);
}

static void a_callers_rights_are_the_callers(void **state)
{
    (void)state;
    if (geteuid() != 0)
        skip();
    const struct rights root = {0}, other = {.uid = 12345, .gid = 12345};
    struct error err = ERROR_INIT;
    char path[128], target[128];
    struct stat st;
    int fd;
    (void)snprintf(path, sizeof(path), "%s/secret", dir);
    assert_int_equal(rights_open(&root, path, O_RDWR | O_CREAT | O_EXCL, 0600, &fd, &err), 0);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    (void)close(fd);
    assert_int_equal(rights_open(&other, path, O_RDONLY, 0, &fd, &err), -EACCES);
    assert_int_equal(rights_unlink(&other, path, &err), -EACCES);
    (void)snprintf(target, sizeof(target), "%s/published", dir);
    assert_int_equal(rights_publish(&other, path, target, &err), -EACCES);
    assert_int_equal(chown(dir, 12345, 12345), 0);
    (void)snprintf(path, sizeof(path), "%s/mine", dir);
    assert_int_equal(rights_open(&other, path, O_RDWR | O_CREAT | O_EXCL, 0600, &fd, &err), 0);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_uid, 12345);
    (void)close(fd);
    assert_int_equal(rights_publish(&other, path, target, &err), 0);
    assert_int_equal(rights_open(&other, path, O_RDWR | O_CREAT | O_EXCL, 0600, &fd, &err), 0);
    (void)close(fd);
    assert_int_equal(rights_publish(&other, path, target, &err), -EEXIST);
    assert_int_equal(rights_unlink(&other, path, &err), 0);
    assert_int_equal(rights_unlink(&other, path, &err), 0);
}

static void a_pipe_does_not_hang_an_open(void **state)
{
    (void)state;
    const struct rights rights = {.uid = geteuid(), .gid = getegid()};
    char path[128];
    int fd;
    (void)snprintf(path, sizeof(path), "%s/pipe", dir);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(rights_open(&rights, path, O_RDONLY, 0, &fd, NULL), 0);
    (void)close(fd);
}

static void copies_are_equal_and_sparse(void **state)
{
    (void)state;
    char from[128], to[128], command[300];
    (void)snprintf(from, sizeof(from), "%s/from", dir);
    (void)snprintf(to, sizeof(to), "%s/to", dir);
    int in = open(from, O_RDWR | O_CREAT, 0600), out = open(to, O_RDWR | O_CREAT, 0600);
    assert_int_equal(pwrite(out, "rubbish", 7, 0), 7);
    assert_int_equal(pwrite(in, "head", 4, 3), 4);
    assert_int_equal(pwrite(in, "tail", 4, 64 << 20), 4);
    assert_int_equal(ftruncate(in, 100 << 20), 0);
    assert_int_equal(copy_file(in, out, -1, NULL, NULL, NULL), 0);
    struct stat st;
    assert_int_equal(fstat(out, &st), 0);
    assert_true(st.st_blocks < 4096);
    (void)snprintf(command, sizeof(command), "cmp %s %s", from, to);
    assert_int_equal(system(command), 0);
    int cancel = eventfd(1, EFD_CLOEXEC);
    int r = copy_file(in, out, cancel, NULL, NULL, NULL);
    assert_true(r == -ECANCELED || r == 0); /* a reflink is done at once */
    (void)close(cancel);
    (void)close(in);
    (void)close(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tools_run_fail_hang_and_are_cancelled),
        cmocka_unit_test_setup_teardown(a_callers_rights_are_the_callers, setup, teardown),
        cmocka_unit_test_setup_teardown(a_pipe_does_not_hang_an_open, setup, teardown),
        cmocka_unit_test_setup_teardown(copies_are_equal_and_sparse, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
