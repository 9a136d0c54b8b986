/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors of the control path.
 *
 * Functions return a negative errno. Those of the control path also take, last, a caller-owned `struct error`
 * that they fill with the operation and its object ("open 'x.qcow2': No such file or directory"). A caller that
 * passes the error on may prepend its own context; whoever finally handles the request logs it, once.
 * `err` may be NULL everywhere: then only the number travels.
 */
#ifndef PLATTER_COMMON_ERROR_H
#define PLATTER_COMMON_ERROR_H

#include <stdarg.h>

#define ERROR_MESSAGE_MAX 512
#define ERROR_CODE_MAX 40
#define ERROR_HOLDER_MAX 128
#define ERROR_HINT_MAX 256

struct error {
    int errnum;                      /* positive errno, 0 = no error */
    char code[ERROR_CODE_MAX];       /* stable word for programs ("volume-in-use"); "" = by errno */
    char message[ERROR_MESSAGE_MAX]; /* for a person */
    char holder[ERROR_HOLDER_MAX];   /* who holds what was asked for, or "" */
    char hint[ERROR_HINT_MAX];       /* the next command to try, or "" */
};

#define ERROR_INIT ((struct error){0})

/* Set `err` to `errnum` (positive or negative) with the formatted message and return -|errnum|.
 * error_set says just that; error_sys appends ": " and strerror. */
int error_set(struct error *err, int errnum, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
int error_sys(struct error *err, int errnum, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Put "context: " before the message; returns -errnum for `return error_prefix(...)`. */
int error_prefix(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Add the machine-readable parts to an error already set. Each returns -errnum. */
int error_code(struct error *err, const char *code);
int error_holder(struct error *err, const char *holder);
int error_hint(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Copy `from` into `to` unless `to` is NULL; returns -from->errnum. */
int error_copy(struct error *to, const struct error *from);
void error_clear(struct error *err);

/* The stable code word: err->code, or one derived from errnum ("not-found", "exists", "no-space", ...). */
const char *error_code_word(const struct error *err);

/* clang-tidy's analyzer sees one file at a time: tell it that what sets an error never returns success. */
#if defined(__clang_analyzer__) && !defined(ERROR_IMPLEMENTATION)
#define error_set(...) (error_set(__VA_ARGS__), -1)
#define error_sys(...) (error_sys(__VA_ARGS__), -1)
#define error_prefix(...) (error_prefix(__VA_ARGS__), -1)
#define error_code(...) (error_code(__VA_ARGS__), -1)
#define error_holder(...) (error_holder(__VA_ARGS__), -1)
#define error_hint(...) (error_hint(__VA_ARGS__), -1)
#define error_copy(...) (error_copy(__VA_ARGS__), -1)
#endif

#endif
