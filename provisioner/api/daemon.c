// SPDX-License-Identifier: Apache-2.0
/*
 * platterd: configuration, manager, socket, server; then the main thread only waits for signals and keeps time. SIGTERM
 * and SIGINT stop the API and the manager; block servers and mounts are not touched and go on. SIGHUP reads the log
 * level again.
 *
 * Signals are handled, not blocked or ignored: a handler is reset by exec, so what platterd starts begins with a clean
 * slate. The handler writes one byte to a pipe.
 */
#include "provisioner/api/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "common/config.h"
#include "common/log.h"
#include "provisioner/api/listen.h"
#include "provisioner/api/route.h"
#include "provisioner/api/server.h"

#define TICK_MS 15000
#define EXIT_USAGE 2

static int signal_pipe[2] = {-1, -1};

struct arguments {
    const char *config_path;
    const char *values[4]; /* by override_keys */
    bool print_routes, help, version;
};

static const char *const override_keys[4] = {"state_dir", "runtime_dir", "socket", "log_level"};

static const struct option long_options[] = {
    {"state-dir", required_argument, NULL, 0}, {"runtime-dir", required_argument, NULL, 1},
    {"socket", required_argument, NULL, 2},    {"log-level", required_argument, NULL, 3},
    {"config", required_argument, NULL, 'c'},  {"print-routes", no_argument, NULL, 'r'},
    {"help", no_argument, NULL, 'h'},          {"version", no_argument, NULL, 'V'},
    {"foreground", no_argument, NULL, 'f'},    {NULL, 0, NULL, 0},
};

static void print_help(FILE *out)
{
    (void)fputs("Usage: platterd [OPTIONS]\n\n"
                "The control daemon of platter. It stays in the foreground.\n\n"
                "  --config FILE        configuration (" CONFIG_PATH_DEFAULT ")\n"
                "  --state-dir DIR      the catalogue\n"
                "  --runtime-dir DIR    sockets\n"
                "  --socket PATH        the API's socket (RUNTIME/platter.sock)\n"
                "  --log-level LEVEL    error, warning, info or debug\n"
                "  --foreground         accepted for habit's sake: there is no other way\n"
                "  --print-routes       print method, path and role of every route, and end\n"
                "  --version, --help\n",
                out);
}

static int parse_arguments(int argc, char **argv, struct arguments *arguments)
{
    int c;
    while ((c = getopt_long(argc, argv, "h", long_options, NULL)) != -1) {
        if (c >= 0 && c < (int)ARRAY_SIZE(override_keys))
            arguments->values[c] = optarg;
        else if (c == 'c')
            arguments->config_path = optarg;
        else if (c == 'r')
            arguments->print_routes = true;
        else if (c == 'h')
            arguments->help = true;
        else if (c == 'V')
            arguments->version = true;
        else if (c != 'f')
            return -EINVAL; /* getopt has said why */
    }
    if (optind < argc) {
        (void)fprintf(stderr, "platterd: unexpected argument '%s'\n", argv[optind]);
        return -EINVAL;
    }
    return 0;
}

static int load_config(const struct arguments *arguments, struct config *config, struct error *err)
{
    int r = config_init(config);
    if (r < 0)
        return error_set(err, r, "out of memory");
    const char *path = arguments->config_path ? arguments->config_path : CONFIG_PATH_DEFAULT;
    r = config_read(config, path, arguments->config_path != NULL, err);
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(override_keys); i++) {
        if (arguments->values[i])
            r = config_set(config, "platterd", override_keys[i], arguments->values[i], err);
    }
    return r < 0 ? r : config_complete(config, err);
}

static void print_routes(void)
{
    for (const struct route *route = routes; route->method; route++)
        (void)printf("%s %s %s\n", route->method, route->pattern, route_role_name(route->role));
}

/* ---- signals ---- */

static void on_signal(int number)
{
    int saved = errno;
    char byte = (char)number;
    (void)!write(signal_pipe[1], &byte, 1);
    errno = saved;
}

static void on_pipe(int number)
{
    (void)number; /* a reader that went away is an error of write(), not the end of platterd */
}

static int catch_signals(struct error *err)
{
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
    if (pipe2(signal_pipe, O_CLOEXEC | O_NONBLOCK) < 0)
        return error_sys(err, errno, "pipe");
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
        if (sigaction(numbers[i], &action, NULL) < 0)
            return error_sys(err, errno, "sigaction");
    }
    action.sa_handler = on_pipe;
    return sigaction(SIGPIPE, &action, NULL) < 0 ? error_sys(err, errno, "sigaction") : 0;
}

static void reload(const struct arguments *arguments)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    (void)sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%lld%06ld", (long long)now.tv_sec, now.tv_nsec / 1000);
    struct config config;
    struct error err = ERROR_INIT;
    if (load_config(arguments, &config, &err) == 0) {
        log_set_level(config.log_level);
        log_info("the log level was read again; everything else needs a restart");
        config_clear(&config);
    } else {
        log_error("the configuration is not taken: %s", err.message);
    }
    (void)sd_notify(0, "READY=1");
}

/* Until SIGTERM or SIGINT. */
static void wait_for_end(const struct arguments *arguments, struct server *server)
{
    uint64_t watchdog_us = 0;
    int tick_ms = TICK_MS;
    if (sd_watchdog_enabled(0, &watchdog_us) > 0)
        tick_ms = (int)MAX(MIN(watchdog_us / 2000, (uint64_t)TICK_MS), 1);
    for (;;) {
        struct pollfd poll_fd = {.fd = signal_pipe[0], .events = POLLIN};
        char number;
        if (poll(&poll_fd, 1, tick_ms) == 0) {
            if (watchdog_us)
                (void)sd_notify(0, "WATCHDOG=1");
            server_tick(server);
        }
        while (read(signal_pipe[0], &number, 1) == 1) {
            if (number != SIGHUP)
                return;
            reload(arguments);
        }
    }
}

/* ---- the daemon ---- */

static int serve(const struct arguments *arguments, const struct config *config, struct error *err)
{
    struct manager_options options = {
        .state_dir = config->state_dir,
        .runtime_dir = config->runtime_dir,
        .blk_program = config->blk,
        .workers = config->workers,
        .merge_rate = config->merge_rate * MIB,
    };
    struct manager *manager = NULL;
    struct server *server = NULL;
    CLEANUP_CLOSE int fd = -1;
    bool own_socket = false;
    int r = catch_signals(err);
    if (r == 0)
        r = manager_start(&options, &manager, err);
    if (r == 0)
        r = listen_open(config, &fd, &own_socket, err);
    if (r == 0)
        r = server_start(fd, config, manager, &server, err);
    if (r == 0) {
        (void)steal_fd(&fd);
        log_info("platterd %s is ready on %s", PLATTER_VERSION, config->socket);
        (void)sd_notifyf(0, "READY=1\nSTATUS=serving %s", config->socket);
        wait_for_end(arguments, server);
        (void)sd_notify(0, "STOPPING=1");
        log_info("stopping; attached volumes go on");
    }
    server_stop(server);
    manager = manager_stop(manager);
    server = server_free(server);
    if (own_socket)
        (void)unlink(config->socket);
    return r;
}

int daemon_main(int argc, char **argv)
{
    struct arguments arguments = {0};
    struct config config;
    struct error err = ERROR_INIT;
    if (parse_arguments(argc, argv, &arguments) < 0)
        return EXIT_USAGE;
    if (arguments.help || arguments.version || arguments.print_routes) {
        if (arguments.help)
            print_help(stdout);
        else if (arguments.version)
            (void)puts("platterd " PLATTER_VERSION);
        else
            print_routes();
        return EXIT_SUCCESS;
    }
    log_init("platterd", LOG_LEVEL_INFO);
    (void)umask(022);
    int r = load_config(&arguments, &config, &err);
    if (r == 0) {
        log_set_level(config.log_level);
        r = serve(&arguments, &config, &err);
    }
    config_clear(&config);
    if (r < 0)
        log_error("%s", err.message);
    return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
