// SPDX-License-Identifier: Apache-2.0
/* Children enter the sandbox and try what it forbids and what it must allow. */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "provisioner/blk/sandbox.h"

static int status_fd = -1; /* the child's /proc/self/status, opened outside */

/* The status of a child that entered the sandbox and returned `attempt`'s value. */
static int in_sandbox(int (*attempt)(void))
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        bool landlock;
        struct error err = ERROR_INIT;
        status_fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
        sandbox_prepare();
        if (sandbox_enter(&landlock, &err) < 0) {
            (void)fprintf(stderr, "%s\n", err.message);
            _exit(99);
        }
        _exit(attempt());
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void assert_killed(int (*attempt)(void))
{
    int status = in_sandbox(attempt);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGSYS);
}

static void assert_exits(int (*attempt)(void), int code)
{
    int status = in_sandbox(attempt);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), code);
}

static int try_open(void)
{
    return open("/etc/passwd", O_RDONLY | O_CLOEXEC) < 0 ? errno : 0;
}

static int try_socket(void)
{
    return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0) < 0;
}

static int try_exec(void)
{
    return execl("/bin/true", "true", (char *)NULL);
}

static int try_ptrace(void)
{
    return ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0;
}

static int try_fork(void)
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    return pid < 0 ? errno : 0;
}

static int try_unlink(void)
{
    return unlink("/etc/passwd-does-not-exist") < 0 ? errno : 0;
}

static int try_mount_ioctl(void)
{
    return (int)syscall(SYS_ioctl, 0, 0x5412 /* TIOCSTI */, "x");
}

static void *thread_main(void *arg)
{
    return arg;
}

static int try_work(void)
{
    pthread_t thread;
    void *result = NULL;
    if (pthread_create(&thread, NULL, thread_main, &result) || pthread_join(thread, &result) || result != &result)
        return 1;
    void *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int fd = memfd_create("test", MFD_CLOEXEC);
    struct stat st;
    struct io_uring_params params = {0};
    if (memory == MAP_FAILED || fd < 0 || ftruncate(fd, 4096) || fdatasync(fd) || fstat(fd, &st) || st.st_size != 4096)
        return 2;
    cpu_set_t cpus;
    if (sched_getaffinity(0, sizeof(cpus), &cpus) || sched_setaffinity(0, sizeof(cpus), &cpus))
        return 3;
    int ring = (int)syscall(SYS_io_uring_setup, 4, &params);
    return ring < 0 && errno != ENOSYS && errno != EPERM ? 4 : 0;
}

static int count_capabilities(void)
{
    static const char *const sets[] = {"CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"};
    char text[4096] = "";
    if (read(status_fd, text, sizeof(text) - 1) <= 0)
        return 90;
    int found = 0;
    for (size_t i = 0; i < sizeof(sets) / sizeof(sets[0]); i++) {
        const char *line = strstr(text, sets[i]);
        found += !line || strtoull(line + strlen(sets[i]), NULL, 16) != 0;
    }
    return found;
}

static void no_capability_is_left(void **state)
{
    (void)state;
    assert_exits(count_capabilities, 0);
}

static void paths_are_refused(void **state)
{
    (void)state;
    assert_exits(try_open, EACCES);
}

static void what_gives_a_new_hold_kills(void **state)
{
    (void)state;
    assert_killed(try_socket);
    assert_killed(try_exec);
    assert_killed(try_ptrace);
    assert_killed(try_fork);
    assert_killed(try_unlink);
    assert_killed(try_mount_ioctl);
}

static void the_work_goes_on(void **state)
{
    (void)state;
    assert_exits(try_work, 0);
}

int main(void)
{
    if (SANDBOX_SANITIZED) {
        (void)puts("SKIP: builds with sanitizers stand outside the sandbox");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_capability_is_left),
        cmocka_unit_test(paths_are_refused),
        cmocka_unit_test(what_gives_a_new_hold_kills),
        cmocka_unit_test(the_work_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
