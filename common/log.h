/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log: one line a message to standard error, in the priority form that the journal understands when
 * standard error is the journal. Libraries do not log; whoever handles a request logs its outcome, once.
 * Safe from any thread; never called on the I/O path.
 */
#ifndef PLATTER_COMMON_LOG_H
#define PLATTER_COMMON_LOG_H

#include "common/error.h"

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* Set once by main: the program's name ("platterd") and the least important level that is still written. */
void log_init(const char *program, enum log_level level);

/* Change the level later, from any thread, as a reload of the configuration does. */
void log_set_level(enum log_level level);

/* "error", "warning", "info" or "debug"; -EINVAL for anything else. */
int log_level_parse(const char *word, enum log_level *ret_level);

void log_write(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_write(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...) log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
