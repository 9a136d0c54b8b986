/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the catalogue: prepared statements by their literal text, with the lock held for each call.
 *
 * `format` has one letter for each bound value: t text, n text where "" means NULL, i int64, d double.
 */
#ifndef PLATTER_PROVISIONER_CATALOGUE_STATEMENT_H
#define PLATTER_PROVISIONER_CATALOGUE_STATEMENT_H

#include <pthread.h>
#include <sqlite3.h>

#include "provisioner/catalogue/catalogue.h"

#define STATEMENTS_MAX 96

struct statement {
    const char *sql; /* a literal: compared by address */
    sqlite3_stmt *prepared;
};

struct catalogue {
    sqlite3 *db;
    pthread_mutex_t lock; /* recursive: a transaction holds it across its statements */
    unsigned depth;       /* 1 inside a transaction; guarded by lock */
    struct statement statements[STATEMENTS_MAX];
    size_t statement_count;
};

/* Fills one record from the current row; -ENOMEM or 0. */
typedef int (*row_fn)(sqlite3_stmt *row, void *record);

/* Run one writing statement; returns the number of rows changed (>= 0). -EEXIST, -EBUSY for violated constraints. */
int statement_run(struct catalogue *catalogue, struct error *err, const char *sql, const char *format, ...);

/* Read one row into `record`: -ENOENT with "no KIND 'KEY'" when there is none. */
int statement_row(struct catalogue *catalogue, row_fn fill, void *record, const char *kind, const char *key,
                  struct error *err, const char *sql, const char *format, ...);

/* Read all rows into a new array of records. */
int statement_rows(struct catalogue *catalogue, row_fn fill, size_t record_size, void **ret_records, size_t *ret_count,
                   struct error *err, const char *sql, const char *format, ...);

/* -EIO with SQLite's own text, or a better number where it says which. */
int statement_error(struct catalogue *catalogue, int code, struct error *err, const char *what);

/* Change the flush level outside of transactions; nothing inside one. */
void statement_flush_level(struct catalogue *catalogue, bool full);

void column_text(sqlite3_stmt *row, int column, char *buffer, size_t size);
/* NULL stays NULL; -ENOMEM. */
int column_copy(sqlite3_stmt *row, int column, char **ret_text);

#endif
