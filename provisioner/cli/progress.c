// SPDX-License-Identifier: Apache-2.0
#include "provisioner/cli/progress.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "common/size.h"

#define BAR_WIDTH 24
#define NS_PER_SECOND INT64_C(1000000000)

int64_t monotonic_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NS_PER_SECOND + now.tv_nsec;
}

void progress_start(struct progress *progress, enum progress_form form)
{
    const char *terminal = getenv("TERM");
    bool capable = isatty(STDERR_FILENO) && terminal && strcmp(terminal, "dumb") != 0;
    if (form == PROGRESS_AUTO)
        form = capable ? PROGRESS_BAR : PROGRESS_NONE;
    *progress = (struct progress){.form = form, .start_ns = monotonic_ns()};
}

static void show_bar(struct progress *progress, const char *what, uint64_t done, uint64_t total)
{
    char bar[BAR_WIDTH + 1], done_text[SIZE_TEXT_MAX], total_text[SIZE_TEXT_MAX], rate_text[SIZE_TEXT_MAX];
    char left[64] = "";
    unsigned filled = (unsigned)((unsigned __int128)done * BAR_WIDTH / total);
    memset(bar, '-', BAR_WIDTH);
    memset(bar, '#', filled);
    bar[BAR_WIDTH] = '\0';
    double seconds = (double)(monotonic_ns() - progress->start_ns) / (double)NS_PER_SECOND;
    double rate = seconds > 0 && done > progress->first_done ? (double)(done - progress->first_done) / seconds : 0;
    if (rate >= 1) {
        double remaining = (double)(total - done) / rate;
        unsigned whole = remaining < 359999 ? (unsigned)remaining : 359999;
        (void)snprintf(left, sizeof(left), "  %s/s  %u:%02u:%02u left", size_format((uint64_t)rate, rate_text),
                       whole / 3600, whole / 60 % 60, whole % 60);
    }
    (void)fprintf(stderr, "\r\033[K%s [%s] %3u%%  %s of %s%s", what, bar,
                  (unsigned)((unsigned __int128)done * 100 / total), size_format(done, done_text),
                  size_format(total, total_text), left);
    (void)fflush(stderr);
}

void progress_show(struct progress *progress, const json_t *job)
{
    const json_t *value = json_object_get(job, "progress");
    json_int_t total = json_integer_value(json_object_get(value, "total"));
    json_int_t done = json_integer_value(json_object_get(value, "done"));
    if (progress->form == PROGRESS_NONE || total <= 0 || done < 0)
        return;
    done = MIN(done, total);
    if (!progress->any) {
        progress->any = true;
        progress->first_done = (uint64_t)done;
        progress->start_ns = monotonic_ns();
    }
    const char *kind = json_string_value(json_object_get(job, "kind"));
    if (progress->form == PROGRESS_BAR) {
        show_bar(progress, kind ? kind : "job", (uint64_t)done, (uint64_t)total);
        return;
    }
    const char *id = json_string_value(json_object_get(job, "id"));
    json_t *line = json_pack("{s:s*, s:s*, s:I, s:I}", "job", id, "kind", kind, "done", done, "total", total);
    CLEANUP_FREE char *text = line ? json_dumps(line, JSON_COMPACT) : NULL;
    json_decref(line);
    if (text)
        (void)fprintf(stderr, "%s\n", text);
}

void progress_end(struct progress *progress)
{
    if (progress->form == PROGRESS_BAR && progress->any)
        (void)fputs("\r\033[K", stderr);
}
