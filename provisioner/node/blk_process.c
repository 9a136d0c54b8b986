// SPDX-License-Identifier: Apache-2.0
/*
 * Processes are held by pidfd, so a number that was given to somebody else meanwhile is never signalled. A session of
 * their own and KillMode=process keep servers running when platterd ends.
 */
#include "provisioner/node/blk_process.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"

enum {
    SOCKET_FD = 3,
    KILL_TIMEOUT_MS = 10000,
};

static int find_binary(char path[static PATH_MAX], struct error *err)
{
    ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - 1);
    if (n < 0)
        return error_sys(err, errno, "find the running executable");
    path[n] = 0;
    char *slash = strrchr(path, '/');
    size_t room = slash ? PATH_MAX - (size_t)(slash + 1 - path) : 0;
    if (!slash || (size_t)snprintf(slash + 1, room, "platter-blk") >= room)
        return error_sys(err, ENAMETOOLONG, "find platter-blk");
    return 0;
}

static int set_up_files(posix_spawn_file_actions_t *actions, int socket_fd)
{
    int r = posix_spawn_file_actions_addopen(actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (r == 0)
        r = posix_spawn_file_actions_adddup2(actions, STDERR_FILENO, STDOUT_FILENO);
    if (r == 0)
        r = posix_spawn_file_actions_adddup2(actions, socket_fd, SOCKET_FD);
    if (r == 0)
        r = posix_spawn_file_actions_addclosefrom_np(actions, SOCKET_FD + 1);
    return -r;
}

static int set_up_attributes(posix_spawnattr_t *attributes)
{
    sigset_t none, all;
    (void)sigemptyset(&none);
    (void)sigfillset(&all);
    int r = posix_spawnattr_setsigmask(attributes, &none);
    if (r == 0)
        r = posix_spawnattr_setsigdefault(attributes, &all);
    if (r == 0)
        r = posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    return -r;
}

static int spawn(const char *binary, const char *mode, int socket_fd, pid_t *ret_pid)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    int r = -posix_spawn_file_actions_init(&actions);
    if (r < 0)
        return r;
    r = -posix_spawnattr_init(&attributes);
    if (r < 0) {
        (void)posix_spawn_file_actions_destroy(&actions);
        return r;
    }
    r = set_up_files(&actions, socket_fd);
    if (r == 0)
        r = set_up_attributes(&attributes);
    char *argv[] = {(char *)"platter-blk", (char *)mode, NULL};
    if (r == 0)
        r = -posix_spawn(ret_pid, binary, &actions, &attributes, argv, environ);
    (void)posix_spawnattr_destroy(&attributes);
    (void)posix_spawn_file_actions_destroy(&actions);
    return r;
}

int blk_process_start(const char *binary, const char *mode, int socket_fd, pid_t *ret_pid, int *ret_pidfd,
                      struct error *err)
{
    char path[PATH_MAX];
    if (!binary) {
        int r = find_binary(path, err);
        if (r < 0)
            return r;
        binary = path;
    }
    pid_t pid = 0;
    int r = spawn(binary, mode, socket_fd, &pid);
    if (r < 0)
        return error_sys(err, r, "start '%s %s'", binary, mode);
    int pidfd = pidfd_open(pid, 0);
    if (pidfd < 0) {
        r = -errno;
        (void)kill(pid, SIGKILL); /* ours and not reaped yet, so the number is still its own */
        (void)waitpid(pid, NULL, 0);
        return error_sys(err, r, "hold on to '%s'", binary);
    }
    *ret_pid = pid;
    *ret_pidfd = pidfd;
    return 0;
}

static void describe_end(const siginfo_t *info, char ret_how[static 48])
{
    if (info->si_pid == 0)
        ret_how[0] = 0;
    else if (info->si_code == CLD_EXITED)
        (void)snprintf(ret_how, 48, "it ended with status %d", info->si_status);
    else
        (void)snprintf(ret_how, 48, "it was ended by signal %d", info->si_status);
}

int blk_process_wait(int pidfd, int timeout_ms, char ret_how[static 48])
{
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    int r;
    do {
        r = poll(&p, 1, timeout_ms);
    } while (r < 0 && errno == EINTR);
    if (r < 0)
        return -errno;
    if (r == 0)
        return -ETIMEDOUT;
    siginfo_t info = {0};
    (void)waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED | WNOHANG); /* ECHILD: somebody else's child */
    describe_end(&info, ret_how);
    return 0;
}

int blk_process_kill(int pidfd)
{
    char how[48];
    (void)pidfd_send_signal(pidfd, SIGKILL, NULL, 0); /* ESRCH: it has ended already */
    return blk_process_wait(pidfd, KILL_TIMEOUT_MS, how);
}
