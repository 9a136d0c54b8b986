// SPDX-License-Identifier: Apache-2.0
#include "common/log.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *log_program = "platter";
static _Atomic(enum log_level) log_least = LOG_LEVEL_INFO;
static bool log_to_journal;

static const char *const level_words[] = {"error", "warning", "info", "debug"};
static const int level_priorities[] = {3, 4, 6, 7};

void log_init(const char *program, enum log_level level)
{
    log_program = program;
    log_set_level(level);
    log_to_journal = getenv("JOURNAL_STREAM") != NULL;
}

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&log_least, level, memory_order_relaxed);
}

int log_level_parse(const char *word, enum log_level *ret_level)
{
    for (size_t i = 0; i < sizeof(level_words) / sizeof(level_words[0]); i++) {
        if (strcmp(word, level_words[i]) == 0) {
            *ret_level = (enum log_level)i;
            return 0;
        }
    }
    return -EINVAL;
}

void log_write(enum log_level level, const char *fmt, ...)
{
    if (level > atomic_load_explicit(&log_least, memory_order_relaxed))
        return;
    char line[1024];
    int n = log_to_journal
                ? snprintf(line, sizeof(line), "<%d>", level_priorities[level])
                : snprintf(line, sizeof(line), "%s[%d]: %s: ", log_program, (int)getpid(), level_words[level]);
    if (n < 0)
        return;
    va_list ap;
    va_start(ap, fmt);
    int m = vsnprintf(line + n, sizeof(line) - (size_t)n, fmt, ap);
    va_end(ap);
    if (m < 0)
        return;
    size_t length = (size_t)n + (size_t)m;
    if (length >= sizeof(line) - 1)
        length = sizeof(line) - 2;
    /* A name with a newline must not forge a line of its own. */
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)line[i] < ' ')
            line[i] = ' ';
    }
    line[length] = '\n';
    (void)!write(STDERR_FILENO, line, length + 1); /* nowhere left to report to */
}
