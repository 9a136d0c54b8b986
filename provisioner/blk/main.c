// SPDX-License-Identifier: Apache-2.0
/*
 * platter-blk: the process that looks inside image files. Started by platterd only, with a socket as descriptor 3:
 *
 *   platter-blk serve     serve one image: descriptor 3 is the bound control socket
 *   platter-blk worker    do one command: descriptor 3 is the connected socket
 *
 * No argument carries a path or a secret. Environment: PLATTER_LOG (error, warning, info, debug), PLATTER_IO_ENGINE
 * (io.h) and, for debugging only, PLATTER_BLK_SANDBOX=off.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "common/log.h"
#include "provisioner/blk/sandbox.h"
#include "provisioner/blk/server.h"
#include "provisioner/blk/worker.h"

enum {
    SOCKET_FD = 3,
    EXIT_USAGE = 2,
};

static void set_up_log(void)
{
    enum log_level level = LOG_LEVEL_INFO;
    const char *word = getenv("PLATTER_LOG");
    if (word && log_level_parse(word, &level) < 0)
        level = LOG_LEVEL_INFO;
    log_init("platter-blk", level);
}

/* SIGTERM is read by the server's loop; SIGINT is for the terminal's foreground, which we are not. */
static void set_up_signals(void)
{
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    (void)sigaction(SIGINT, &ignore, NULL);
    (void)sigaction(SIGPIPE, &ignore, NULL);
    (void)sigaction(SIGHUP, &ignore, NULL);
    sigset_t mask;
    (void)sigemptyset(&mask);
    (void)sigaddset(&mask, SIGTERM);
    (void)sigprocmask(SIG_BLOCK, &mask, NULL);
}

static int enter_sandbox(void)
{
    const char *word = getenv("PLATTER_BLK_SANDBOX");
    sandbox_prepare();
    if (word && strcmp(word, "off") == 0) {
        log_warning("running without the sandbox: PLATTER_BLK_SANDBOX=off");
        return 0;
    }
    bool landlock;
    struct error err = ERROR_INIT;
    int r = sandbox_enter(&landlock, &err);
    if (r < 0)
        log_error("%s", err.message);
    else if (!landlock && !SANDBOX_SANITIZED)
        log_warning("this kernel has no Landlock: paths are guarded by seccomp alone");
    return r;
}

/* True when descriptor 3 is a Unix stream socket. */
static bool socket_is_there(void)
{
    int domain, type;
    socklen_t length = sizeof(int);
    if (getsockopt(SOCKET_FD, SOL_SOCKET, SO_DOMAIN, &domain, &length) < 0 ||
        getsockopt(SOCKET_FD, SOL_SOCKET, SO_TYPE, &type, &length) < 0)
        return false;
    return domain == AF_UNIX && type == SOCK_STREAM;
}

static int serve(void)
{
    /* Listening anew makes the socket name this process to whoever connects (SO_PEERCRED), not platterd. */
    if (listen(SOCKET_FD, 8) < 0) {
        log_error("listen on descriptor 3: %s", strerror(errno));
        return EXIT_FAILURE;
    }
    if (enter_sandbox() < 0)
        return EXIT_FAILURE;
    return server_run(SOCKET_FD);
}

static int work(void)
{
    sigset_t mask;
    (void)sigemptyset(&mask);
    (void)sigaddset(&mask, SIGTERM);
    (void)sigprocmask(SIG_UNBLOCK, &mask, NULL); /* a worker may die at any moment */
    if (enter_sandbox() < 0)
        return EXIT_FAILURE;
    return worker_run(SOCKET_FD);
}

int main(int argc, char **argv)
{
    set_up_log();
    const char *mode = argc == 2 ? argv[1] : "";
    if (strcmp(mode, "--version") == 0) {
        (void)puts("platter-blk " PLATTER_VERSION);
        return EXIT_SUCCESS;
    }
    bool serving = strcmp(mode, "serve") == 0;
    if ((!serving && strcmp(mode, "worker") != 0) || !socket_is_there()) {
        (void)fprintf(stderr,
                      "platter-blk is started by platterd: platter-blk serve|worker, a socket as descriptor 3\n");
        return EXIT_USAGE;
    }
    set_up_signals();
    return serving ? serve() : work();
}
