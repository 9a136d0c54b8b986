// SPDX-License-Identifier: Apache-2.0
#define ERROR_IMPLEMENTATION
#include "common/error.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int error_fill(struct error *err, int errnum, bool with_strerror, const char *fmt, va_list ap)
{
    int positive = errnum ? abs(errnum) : EINVAL;
    if (!err)
        return -positive;
    *err = (struct error){.errnum = positive};
    int n = vsnprintf(err->message, sizeof(err->message), fmt, ap);
    if (with_strerror && n >= 0 && (size_t)n < sizeof(err->message)) {
        char buf[128];
        (void)snprintf(err->message + n, sizeof(err->message) - (size_t)n, ": %s",
                       strerror_r(positive, buf, sizeof(buf)));
    }
    return -positive;
}

int error_set(struct error *err, int errnum, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int r = error_fill(err, errnum, false, fmt, ap);
    va_end(ap);
    return r;
}

int error_sys(struct error *err, int errnum, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int r = error_fill(err, errnum, true, fmt, ap);
    va_end(ap);
    return r;
}

int error_prefix(struct error *err, const char *fmt, ...)
{
    if (!err)
        return -EINVAL;
    char old[ERROR_MESSAGE_MAX];
    memcpy(old, err->message, sizeof(old));
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(err->message, sizeof(err->message), fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof(err->message))
        (void)snprintf(err->message + n, sizeof(err->message) - (size_t)n, ": %s", old);
    return -err->errnum;
}

int error_code(struct error *err, const char *code)
{
    if (!err)
        return -EINVAL;
    (void)snprintf(err->code, sizeof(err->code), "%s", code);
    return -err->errnum;
}

int error_holder(struct error *err, const char *holder)
{
    if (!err)
        return -EINVAL;
    (void)snprintf(err->holder, sizeof(err->holder), "%s", holder);
    return -err->errnum;
}

int error_hint(struct error *err, const char *fmt, ...)
{
    if (!err)
        return -EINVAL;
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(err->hint, sizeof(err->hint), fmt, ap);
    va_end(ap);
    return -err->errnum;
}

int error_copy(struct error *to, const struct error *from)
{
    if (to)
        *to = *from;
    return -from->errnum;
}

void error_clear(struct error *err)
{
    if (err)
        *err = ERROR_INIT;
}

const char *error_code_word(const struct error *err)
{
    if (err->code[0])
        return err->code;
    switch (err->errnum) {
    case 0:
        return "ok";
    case ENOENT:
        return "not-found";
    case EEXIST:
        return "exists";
    case EBUSY:
        return "busy";
    case ENOSPC:
    case EDQUOT:
        return "no-space";
    case EINVAL:
    case ERANGE:
    case ENAMETOOLONG:
        return "invalid";
    case EACCES:
    case EPERM:
        return "forbidden";
    case EOPNOTSUPP:
        return "unsupported";
    case ETIMEDOUT:
        return "timed-out";
    case ECANCELED:
        return "cancelled";
    case EBADMSG:
    case EUCLEAN:
        return "corrupt";
    case ENOMEM:
        return "no-memory";
    default:
        return "failed";
    }
}
