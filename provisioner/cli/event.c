// SPDX-License-Identifier: Apache-2.0
/*
 * platter event follow: every event from a sequence number on, each once. A stream that ends (platterd was restarted)
 * is taken up again after the last event that was printed.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "provisioner/cli/nouns.h"
#include "provisioner/cli/output.h"
#include "provisioner/cli/progress.h"
#include "provisioner/cli/request.h"

#define RECONNECT_MS 500

struct follower {
    const struct cli *cli;
    long long last;
};

static void print_event(const struct cli *cli, const json_t *event, long long seq)
{
    CLEANUP_FREE char *text = NULL;
    if (cli->output == OUTPUT_NAME) {
        (void)printf("%lld\n", seq);
        return;
    }
    if (cli->output == OUTPUT_JSON) {
        text = json_dumps(event, JSON_COMPACT);
        (void)printf("%s\n", text ? text : "{}");
        return;
    }
    char when[32] = "-";
    time_t seconds = (time_t)(json_integer_value(json_object_get(event, "time")) / 1000); /* milliseconds */
    struct tm tm;
    if (localtime_r(&seconds, &tm))
        (void)strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &tm);
    const char *kind = json_string_value(json_object_get(event, "kind"));
    const char *object = json_string_value(json_object_get(event, "volume"));
    if (!object)
        object = json_string_value(json_object_get(event, "object"));
    const json_t *data = json_object_get(event, "data");
    text = json_object_size(data) ? json_dumps(data, JSON_COMPACT) : NULL;
    (void)printf("%lld  %s  ", seq, when);
    output_text(stdout, kind ? kind : "-");
    (void)fputs("  ", stdout);
    output_text(stdout, object ? object : "-");
    (void)fputs("  ", stdout);
    output_text(stdout, text ? text : "");
    (void)putchar('\n');
}

static int on_event(json_t *event, void *context)
{
    struct follower *follower = context;
    long long seq = json_integer_value(json_object_get(event, "seq"));
    if (seq <= follower->last)
        return 0;
    follower->last = seq;
    print_event(follower->cli, event, seq);
    return fflush(stdout) == 0 ? 0 : -EPIPE;
}

static int follow(struct cli *cli, struct follower *follower, bool forever, struct error *err)
{
    int64_t start_ns = monotonic_ns();
    bool reached = false;
    for (;;) {
        char path[128];
        (void)snprintf(path, sizeof(path), "/v1/events?after=%lld%s", follower->last, forever ? "&follow=1" : "");
        int64_t left = cli->timeout_ms - (monotonic_ns() - start_ns) / 1000000;
        if (cli->timeout_ms >= 0 && left <= 0)
            return 0;
        int r = client_stream(cli->client, path, on_event, follower, cli->timeout_ms < 0 ? -1 : (int)left, err);
        if (r == -ETIMEDOUT && cli->timeout_ms >= 0)
            r = 0; /* as long as asked for */
        bool lost = r == -ECONNREFUSED;
        if (!forever || (r < 0 && !(lost && reached)))
            return r;
        reached = true;
        error_clear(err);
        struct timespec pause = {.tv_nsec = RECONNECT_MS * 1000000L};
        (void)nanosleep(&pause, NULL);
    }
}

static int event_follow(struct cli *cli, struct error *err)
{
    struct follower follower = {.cli = cli};
    const char *after = cli_option(cli, "after");
    if (after)
        follower.last = strtoll(after, NULL, 10);
    int r = request_client(cli, err);
    return r < 0 ? r : follow(cli, &follower, !cli_flag(cli, "no-follow"), err);
}

static const struct value_spec follow_options[] = {
    {"after", VALUE_NUMBER, NULL, "begin behind this sequence number", "SEQ"},
    {"no-follow", VALUE_FLAG, NULL, "end behind the last event"},
    {NULL},
};

const struct command event_commands[] = {
    {"event", "follow", "Print what happens, as it happens", {{NULL}}, follow_options, event_follow},
    {NULL},
};
