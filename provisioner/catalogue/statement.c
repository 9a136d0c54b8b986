// SPDX-License-Identifier: Apache-2.0
#include "provisioner/catalogue/statement.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

int statement_error(struct catalogue *catalogue, int code, struct error *err, const char *what)
{
    int extended = sqlite3_extended_errcode(catalogue->db);
    const char *text = sqlite3_errmsg(catalogue->db);
    switch (extended) {
    case SQLITE_CONSTRAINT_UNIQUE:
    case SQLITE_CONSTRAINT_PRIMARYKEY:
        return error_set(err, EEXIST, "catalogue: %s: taken already (%s)", what, text);
    case SQLITE_CONSTRAINT_FOREIGNKEY:
        return error_set(err, EBUSY, "catalogue: %s: others refer to it, or it refers to nothing", what);
    default:
        break;
    }
    if (code == SQLITE_FULL)
        return error_set(err, ENOSPC, "catalogue: %s: %s", what, text);
    if (code == SQLITE_NOMEM)
        return error_set(err, ENOMEM, "catalogue: %s: out of memory", what);
    return error_set(err, EIO, "catalogue: %s: %s", what, text);
}

static int statement_prepare(struct catalogue *c, const char *sql, sqlite3_stmt **ret_statement, struct error *err)
{
    for (size_t i = 0; i < c->statement_count; i++) {
        if (c->statements[i].sql == sql) {
            *ret_statement = c->statements[i].prepared;
            return 0;
        }
    }
    if (c->statement_count == STATEMENTS_MAX)
        return error_set(err, EOVERFLOW, "catalogue: too many different statements");
    sqlite3_stmt *prepared;
    int r = sqlite3_prepare_v3(c->db, sql, -1, SQLITE_PREPARE_PERSISTENT, &prepared, NULL);
    if (r != SQLITE_OK)
        return statement_error(c, r, err, "prepare");
    c->statements[c->statement_count++] = (struct statement){.sql = sql, .prepared = prepared};
    *ret_statement = prepared;
    return 0;
}

static int statement_bind(struct catalogue *c, sqlite3_stmt *s, const char *format, va_list ap, struct error *err)
{
    int r = SQLITE_OK;
    for (int i = 1; *format && r == SQLITE_OK; i++, format++) {
        const char *text;
        switch (*format) {
        case 't':
            text = va_arg(ap, const char *);
            r = sqlite3_bind_text(s, i, text, -1, SQLITE_TRANSIENT);
            break;
        case 'n':
            text = va_arg(ap, const char *);
            r = text && *text ? sqlite3_bind_text(s, i, text, -1, SQLITE_TRANSIENT) : sqlite3_bind_null(s, i);
            break;
        case 'i':
            r = sqlite3_bind_int64(s, i, va_arg(ap, int64_t));
            break;
        case 'd':
            r = sqlite3_bind_double(s, i, va_arg(ap, double));
            break;
        default:
            r = SQLITE_MISUSE;
            break;
        }
    }
    return r == SQLITE_OK ? 0 : statement_error(c, r, err, "bind");
}

static void statement_finish(sqlite3_stmt *s)
{
    (void)sqlite3_reset(s); /* repeats the error of the last step, which was handled there */
    (void)sqlite3_clear_bindings(s);
}

int statement_run(struct catalogue *c, struct error *err, const char *sql, const char *format, ...)
{
    LOCK_SCOPE(&c->lock);
    sqlite3_stmt *s;
    int r = statement_prepare(c, sql, &s, err);
    if (r < 0)
        return r;
    va_list ap;
    va_start(ap, format);
    r = statement_bind(c, s, format, ap, err);
    va_end(ap);
    if (r == 0) {
        int code = sqlite3_step(s);
        r = code == SQLITE_DONE ? sqlite3_changes(c->db) : statement_error(c, code, err, "write");
    }
    statement_finish(s);
    return r;
}

int statement_row(struct catalogue *c, row_fn fill, void *record, const char *kind, const char *key, struct error *err,
                  const char *sql, const char *format, ...)
{
    LOCK_SCOPE(&c->lock);
    sqlite3_stmt *s;
    int r = statement_prepare(c, sql, &s, err);
    if (r < 0)
        return r;
    va_list ap;
    va_start(ap, format);
    r = statement_bind(c, s, format, ap, err);
    va_end(ap);
    if (r == 0) {
        int code = sqlite3_step(s);
        if (code == SQLITE_ROW) {
            r = fill(s, record);
            if (r < 0)
                (void)error_sys(err, r, "catalogue: read %s '%s'", kind, key);
        } else if (code == SQLITE_DONE) {
            r = error_set(err, ENOENT, "no %s '%s'", kind, key);
        } else {
            r = statement_error(c, code, err, "read");
        }
    }
    statement_finish(s);
    return r;
}

/* All rows of a bound statement. On failure the records read so far are in *records too, to be released. */
static int statement_collect(struct catalogue *c, sqlite3_stmt *s, row_fn fill, size_t record_size, char **records,
                             size_t *count, struct error *err)
{
    size_t room = 0;
    int code;
    while ((code = sqlite3_step(s)) == SQLITE_ROW) {
        if (*count == room) {
            room = room ? room * 2 : 16;
            char *bigger = reallocarray(*records, room, record_size);
            if (!bigger)
                return error_sys(err, ENOMEM, "catalogue: list");
            *records = bigger;
        }
        memset(*records + *count * record_size, 0, record_size);
        int r = fill(s, *records + *count * record_size);
        if (r < 0)
            return error_sys(err, r, "catalogue: list");
        (*count)++;
    }
    return code == SQLITE_DONE ? 0 : statement_error(c, code, err, "list");
}

int statement_rows(struct catalogue *c, row_fn fill, size_t record_size, void **ret_records, size_t *ret_count,
                   struct error *err, const char *sql, const char *format, ...)
{
    LOCK_SCOPE(&c->lock);
    sqlite3_stmt *s;
    int r = statement_prepare(c, sql, &s, err);
    if (r < 0)
        return r;
    va_list ap;
    va_start(ap, format);
    r = statement_bind(c, s, format, ap, err);
    va_end(ap);
    CLEANUP_FREE char *records = NULL;
    size_t count = 0;
    if (r == 0)
        r = statement_collect(c, s, fill, record_size, &records, &count, err);
    statement_finish(s);
    if (r < 0)
        return r;
    *ret_records = steal_ptr(&records);
    *ret_count = count;
    return 0;
}

void statement_flush_level(struct catalogue *c, bool full)
{
    if (c->depth == 0)
        (void)sqlite3_exec(c->db, full ? "PRAGMA synchronous=FULL" : "PRAGMA synchronous=NORMAL", NULL, NULL, NULL);
}

void column_text(sqlite3_stmt *row, int column, char *buffer, size_t size)
{
    const char *text = (const char *)sqlite3_column_text(row, column);
    size_t length = text ? strnlen(text, size - 1) : 0;
    if (length)
        memcpy(buffer, text, length);
    buffer[length] = 0;
}

int column_copy(sqlite3_stmt *row, int column, char **ret_text)
{
    const char *text = (const char *)sqlite3_column_text(row, column);
    char *copy = text ? strdup(text) : NULL;
    if (text && !copy)
        return -ENOMEM;
    *ret_text = copy;
    return 0;
}
