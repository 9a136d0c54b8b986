// SPDX-License-Identifier: Apache-2.0
/*
 * The list of allowed system calls.
 *
 * What gives a new hold on the system (paths, sockets, processes, other processes' memory) is absent, and absent means
 * SIGSYS. Calls on paths get EACCES instead, as Landlock would answer: libraries probe files here and there
 * (the number of CPUs, time zones) and do without. clone3 gets ENOSYS, because its flags cannot be examined; glibc then
 * uses clone, which is allowed for threads only. Operations through io_uring are not seen here: Landlock and
 * the loop's own restrictions stand against those.
 */
#include "provisioner/blk/syscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/fuse.h>
#include <sched.h>
#include <seccomp.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

#include "common/checked.h"
#include "common/cleanup.h"

static void release_filter(scmp_filter_ctx *filter)
{
    if (*filter)
        seccomp_release(*filter);
}

/* By name, so that one list serves every architecture; a name that the library does not know is left out. */
static const char *const allowed[] = {
    /* data on descriptors */
    "read",
    "write",
    "readv",
    "writev",
    "pread64",
    "pwrite64",
    "preadv",
    "pwritev",
    "preadv2",
    "pwritev2",
    "lseek",
    "fallocate",
    "ftruncate",
    "fsync",
    "fdatasync",
    "sync_file_range",
    "copy_file_range",
    "splice",
    "fadvise64",
    "fstat",
    "fstatfs",
    "close",
    "close_range",
    "dup",
    "dup3",
    "pipe2",
    "flock",
    /* io_uring and events */
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "eventfd2",
    "timerfd_create",
    "timerfd_settime",
    "timerfd_gettime",
    "epoll_create1",
    "epoll_ctl",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "poll",
    "ppoll",
    "select",
    "pselect6",
    "signalfd4",
    /* sockets that are already there */
    "accept",
    "accept4",
    "recvmsg",
    "sendmsg",
    "recvfrom",
    "sendto",
    "recvmmsg",
    "sendmmsg",
    "shutdown",
    "getsockname",
    "getpeername",
    "getsockopt",
    "setsockopt",
    /* memory */
    "brk",
    "mmap",
    "munmap",
    "mremap",
    "mprotect",
    "madvise",
    "mlock",
    "mlock2",
    "munlock",
    "memfd_create",
    "membarrier",
    "mincore",
    "msync",
    /* threads */
    "futex",
    "futex_waitv",
    "set_robust_list",
    "get_robust_list",
    "rseq",
    "set_tid_address",
    "sched_yield",
    "sched_getaffinity",
    "sched_setaffinity",
    "getcpu",
    "exit",
    "exit_group",
    "gettid",
    "getpid",
    "getppid",
    "tgkill",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "rt_sigtimedwait",
    "sigaltstack",
    "restart_syscall",
    /* time, numbers, limits */
    "clock_gettime",
    "clock_getres",
    "clock_nanosleep",
    "nanosleep",
    "gettimeofday",
    "time",
    "getrandom",
    "getrusage",
    "getrlimit",
    "uname",
    "sysinfo",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "times",
};

static const char *const refused_paths[] = {
    "open",   "openat",    "openat2",    "creat",    "stat",       "lstat",
    "access", "faccessat", "faccessat2", "readlink", "readlinkat",
};

/* Calls allowed for some values of one argument: (argument & mask) == value. */
struct argument_rule {
    const char *name;
    unsigned argument;
    uint64_t mask;
    uint64_t value;
};

#define WHOLE UINT64_C(0xffffffff)

static const struct argument_rule argument_rules[] = {
    {"clone", 0, CLONE_THREAD | CLONE_VM | CLONE_SIGHAND, CLONE_THREAD | CLONE_VM | CLONE_SIGHAND},
    {"newfstatat", 3, AT_EMPTY_PATH, AT_EMPTY_PATH}, /* how glibc asks for fstat */
    {"statx", 2, AT_EMPTY_PATH, AT_EMPTY_PATH},
    {"prlimit64", 2, UINT64_MAX, 0}, /* to look, not to set */
    {"prctl", 0, WHOLE, PR_SET_NAME},
    {"prctl", 0, WHOLE, PR_GET_NAME},
    {"prctl", 0, WHOLE, 0x53564d41}, /* PR_SET_VMA: names for anonymous memory */
    {"fcntl", 1, WHOLE, F_GETFD},
    {"fcntl", 1, WHOLE, F_SETFD},
    {"fcntl", 1, WHOLE, F_GETFL},
    {"fcntl", 1, WHOLE, F_SETFL}, /* O_DIRECT, O_NONBLOCK */
    {"fcntl", 1, WHOLE, F_DUPFD_CLOEXEC},
    {"fcntl", 1, WHOLE, F_OFD_SETLK}, /* a snapshot gives up a writer's locks */
    {"fcntl", 1, WHOLE, F_ADD_SEALS}, /* on shared memory */
    {"fcntl", 1, WHOLE, F_GET_SEALS},
    {"ioctl", 1, WHOLE, FIONREAD},
    {"ioctl", 1, WHOLE, BLKGETSIZE64},
    {"ioctl", 1, WHOLE, BLKSSZGET},
    {"ioctl", 1, WHOLE, BLKPBSZGET},
    {"ioctl", 1, WHOLE, BLKIOMIN},
    {"ioctl", 1, WHOLE, BLKIOOPT},
    {"ioctl", 1, WHOLE, BLKALIGNOFF},
    {"ioctl", 1, WHOLE, BLKROGET},
    {"ioctl", 1, WHOLE, BLKDISCARD},
    {"ioctl", 1, WHOLE, BLKZEROOUT},
    {"ioctl", 1, WHOLE, BLKFLSBUF},
    {"ioctl", 1, WHOLE, FUSE_DEV_IOC_CLONE},
    {"ioctl", 1, WHOLE, FICLONE}, /* between descriptors that it was given */
};

static int add_rules(scmp_filter_ctx filter, const char *const *names, size_t count, uint32_t action)
{
    for (size_t i = 0; i < count; i++) {
        int number = seccomp_syscall_resolve_name(names[i]);
        if (number == __NR_SCMP_ERROR)
            continue;
        int r = seccomp_rule_add(filter, action, number, 0);
        if (r < 0 && r != -EDOM) /* EDOM: this architecture has no such call */
            return r;
    }
    return 0;
}

static int add_argument_rules(scmp_filter_ctx filter)
{
    for (size_t i = 0; i < ARRAY_SIZE(argument_rules); i++) {
        const struct argument_rule *rule = &argument_rules[i];
        int number = seccomp_syscall_resolve_name(rule->name);
        if (number == __NR_SCMP_ERROR)
            continue;
        struct scmp_arg_cmp compare = {rule->argument, SCMP_CMP_MASKED_EQ, rule->mask, rule->value};
        int r = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, number, 1, &compare);
        if (r < 0 && r != -EDOM)
            return r;
    }
    return 0;
}

int syscalls_restrict(struct error *err)
{
    CLEANUP(release_filter) scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    if (!filter)
        return error_sys(err, ENOMEM, "sandbox: make a seccomp filter");
    (void)seccomp_attr_set(filter, SCMP_FLTATR_CTL_LOG, 1);
    (void)seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2); /* a tree: short ways for every call */
    static const char *const clone3[] = {"clone3"};
    int r = add_rules(filter, allowed, ARRAY_SIZE(allowed), SCMP_ACT_ALLOW);
    if (r == 0)
        r = add_rules(filter, refused_paths, ARRAY_SIZE(refused_paths), SCMP_ACT_ERRNO(EACCES));
    if (r == 0)
        r = add_rules(filter, clone3, ARRAY_SIZE(clone3), SCMP_ACT_ERRNO(ENOSYS));
    if (r == 0)
        r = add_argument_rules(filter);
    if (r == 0)
        r = seccomp_load(filter);
    return r < 0 ? error_sys(err, r, "sandbox: load the seccomp filter") : 0;
}
