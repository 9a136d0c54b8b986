// SPDX-License-Identifier: Apache-2.0
/*
 * Every child is watched through a pidfd, so that waiting has a deadline and can be cancelled, and is tied to us with
 * PR_SET_PDEATHSIG: a tool must not go on writing to a device after platterd died and its successor took over. The
 * signal comes when the *thread* that forked ends; the threads here wait for their children.
 */
#include "provisioner/node/process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"

#define OUTPUT_MAX 384 /* the end of a tool's output that goes into the error */

static int64_t now_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int remaining_ms(int64_t deadline)
{
    int64_t left = deadline - now_ms();
    return left < 0 ? 0 : (int)left;
}

/* In the child, right after fork: die with the parent, default signals. */
static void child_prepare(pid_t parent)
{
    sigset_t none;
    (void)sigemptyset(&none);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(127); /* it died between fork and prctl */
    for (int sig = 1; sig < 32; sig++)
        (void)signal(sig, SIG_DFL);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
}

static void child_exec(const char *const argv[], int output)
{
    static char path[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", language[] = "LC_ALL=C";
    static char *environment[] = {path, language, NULL};
    int null = open("/dev/null", O_RDWR);
    if (null < 0 || dup2(null, 0) < 0 || dup2(output, 1) < 0 || dup2(output, 2) < 0)
        _exit(127);
    (void)setsid();
    (void)syscall(SYS_close_range, 3, ~0U, 0);
    union {
        const char *const *in;
        char *const *out;
    } arguments = {.in = argv}; /* execvpe does not write to them */
    (void)execvpe(argv[0], arguments.out, environment);
    _exit(errno == ENOENT ? 126 : 127);
}

/* Keep the last OUTPUT_MAX - 1 bytes of what comes. Returns 0 at end of file. */
static int output_read(int fd, char output[OUTPUT_MAX], size_t *length)
{
    char chunk[OUTPUT_MAX - 1];
    ssize_t n = read(fd, chunk, sizeof(chunk));
    if (n <= 0)
        return n < 0 && (errno == EAGAIN || errno == EINTR);
    size_t keep = (size_t)n + *length < OUTPUT_MAX ? *length : OUTPUT_MAX - 1 - (size_t)n;
    memmove(output, output + *length - keep, keep);
    memcpy(output + keep, chunk, (size_t)n);
    *length = keep + (size_t)n;
    return 1;
}

static int kill_and_wait(pid_t pid, int pidfd)
{
    (void)kill(pid, SIGKILL);
    struct pollfd ended = {.fd = pidfd, .events = POLLIN};
    if (poll(&ended, 1, 2000) == 1)
        (void)waitpid(pid, NULL, 0);
    return 0; /* one that hangs in the kernel stays a zombie until it is released there */
}

/* Wait for the child's end while reading its output; `output_fd` may be -1. */
static int child_wait(pid_t pid, int pidfd, int output_fd, int deadline_ms, int cancel_fd, char *output, size_t *length,
                      int *ret_status)
{
    int64_t deadline = now_ms() + deadline_ms;
    struct pollfd fds[3] = {
        {.fd = pidfd, .events = POLLIN}, {.fd = cancel_fd, .events = POLLIN}, {.fd = output_fd, .events = POLLIN}};
    for (;;) {
        int n = poll(fds, 3, remaining_ms(deadline));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0 || fds[1].revents) {
            (void)kill_and_wait(pid, pidfd);
            return n < 0 ? -errno : n == 0 ? -ETIMEDOUT : -ECANCELED;
        }
        if (output && fds[2].revents && !output_read(output_fd, output, length))
            fds[2].fd = -1;
        if (fds[0].revents && !fds[2].revents)
            break;
    }
    return waitpid(pid, ret_status, 0) < 0 ? -errno : 0;
}

int process_reap(pid_t pid, int deadline_ms, int cancel_fd, int *ret_status)
{
    CLEANUP_CLOSE int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0)
        return -errno;
    return child_wait(pid, pidfd, -1, deadline_ms, cancel_fd, NULL, NULL, ret_status);
}

int process_run(const char *const argv[], int deadline_ms, int cancel_fd, struct error *err)
{
    int pipe_fds[2];
    if (pipe2(pipe_fds, O_CLOEXEC) < 0)
        return error_sys(err, errno, "start %s", argv[0]);
    CLEANUP_CLOSE int output_fd = pipe_fds[0];
    CLEANUP_CLOSE int child_end = pipe_fds[1];
    pid_t parent = getpid(), pid = fork();
    if (pid < 0)
        return error_sys(err, errno, "start %s", argv[0]);
    if (pid == 0) {
        child_prepare(parent);
        child_exec(argv, child_end);
    }
    close_fd(&child_end);
    (void)fcntl(output_fd, F_SETFL, O_NONBLOCK);
    CLEANUP_CLOSE int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0) {
        (void)kill(pid, SIGKILL);
        (void)waitpid(pid, NULL, 0);
        return error_sys(err, ENFILE, "start %s", argv[0]);
    }
    char output[OUTPUT_MAX];
    size_t length = 0;
    int status;
    int r = child_wait(pid, pidfd, output_fd, deadline_ms, cancel_fd, output, &length, &status);
    if (r < 0)
        return error_sys(err, r, "run %s", argv[0]);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 126)
        return error_set(err, ENOENT, "%s is not installed", argv[0]);
    output[length] = 0;
    return error_set(err, EIO, "%s failed (%s %d): %s", argv[0], WIFEXITED(status) ? "status" : "signal",
                     WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status), output);
}

/* ---- children that act for a caller ------------------------------------------------------------------------ */

static void child_answer(int socket, int result)
{
    struct iovec iov = {.iov_base = &result, .iov_len = sizeof(result)};
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    memset(&control, 0, sizeof(control));
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    if (result >= 0) {
        message.msg_control = control.space;
        message.msg_controllen = sizeof(control.space);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &result, sizeof(int));
    }
    (void)sendmsg(socket, &message, MSG_NOSIGNAL);
}

static int child_result(int socket)
{
    int result = 0;
    struct iovec iov = {.iov_base = &result, .iov_len = sizeof(result)};
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr message = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof(control.space)};
    ssize_t n = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    if (n != (ssize_t)sizeof(result))
        return n < 0 ? -errno : -EIO; /* it ended without an answer */
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (result < 0 || !header)
        return result < 0 ? result : -EIO;
    memcpy(&result, CMSG_DATA(header), sizeof(int));
    return result;
}

int process_child(process_child_fn fn, void *arg, int wants_fd, int deadline_ms)
{
    int sockets[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0)
        return -errno;
    CLEANUP_CLOSE int ours = sockets[0];
    CLEANUP_CLOSE int child_end = sockets[1];
    pid_t parent = getpid(), pid = fork();
    if (pid < 0)
        return -errno;
    if (pid == 0) {
        child_prepare(parent);
        int result = fn(arg);
        if (wants_fd)
            child_answer(child_end, result);
        _exit(result < 0 && -result < 126 ? -result : result < 0 ? EIO : 0);
    }
    close_fd(&child_end);
    struct pollfd answer = {.fd = ours, .events = POLLIN};
    int r = 0;
    if (wants_fd) {
        int n = poll(&answer, 1, deadline_ms);
        r = n == 1 ? child_result(ours) : n == 0 ? -ETIMEDOUT : -errno;
    }
    int status = 0;
    int reaped = process_reap(pid, r == -ETIMEDOUT ? 0 : deadline_ms, -1, &status);
    if (wants_fd || reaped < 0)
        return wants_fd ? r : reaped;
    return WIFEXITED(status) ? -WEXITSTATUS(status) : -EIO;
}
