// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "provisioner/catalogue/statement.h"

#define JOB_COLUMNS                                                                                                    \
    "id, kind, volume_id, volume_name, attachment_id, state, step, data, error, result, done, total, created, ended"

static int job_fill(sqlite3_stmt *row, void *record)
{
    struct job_record *r = record;
    *r = (struct job_record){.done = (uint64_t)sqlite3_column_int64(row, 10),
                             .total = (uint64_t)sqlite3_column_int64(row, 11),
                             .created = sqlite3_column_int64(row, 12),
                             .ended = sqlite3_column_int64(row, 13)};
    column_text(row, 0, r->id, sizeof(r->id));
    column_text(row, 1, r->kind, sizeof(r->kind));
    column_text(row, 2, r->volume_id, sizeof(r->volume_id));
    column_text(row, 3, r->volume_name, sizeof(r->volume_name));
    column_text(row, 4, r->attachment_id, sizeof(r->attachment_id));
    column_text(row, 5, r->state, sizeof(r->state));
    column_text(row, 6, r->step, sizeof(r->step));
    if (column_copy(row, 7, &r->data) == 0 && column_copy(row, 8, &r->error) == 0 &&
        column_copy(row, 9, &r->result) == 0)
        return 0;
    job_record_done(r);
    return -ENOMEM;
}

void job_record_done(struct job_record *record)
{
    free(record->data);
    free(record->error);
    free(record->result);
    record->data = record->error = record->result = NULL;
}

void job_records_free(struct job_record *records, size_t count)
{
    for (size_t i = 0; i < count; i++)
        job_record_done(&records[i]);
    free(records);
}

int catalogue_job_insert(struct catalogue *c, const struct job_record *r, struct error *err)
{
    int n =
        statement_run(c, err, "INSERT INTO jobs (" JOB_COLUMNS ") VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                      "ttttttttnniiii", r->id, r->kind, r->volume_id, r->volume_name, r->attachment_id, r->state,
                      r->step, r->data, r->error, r->result, (int64_t)r->done, (int64_t)r->total, r->created, r->ended);
    return n < 0 ? n : 0;
}

int catalogue_job_update(struct catalogue *c, const struct job_record *r, struct error *err)
{
    int n = statement_run(c, err,
                          "UPDATE jobs SET state = ?, step = ?, data = ?, error = ?, result = ?, done = ?, total = ?,"
                          " ended = ? WHERE id = ?",
                          "tttnniiit", r->state, r->step, r->data, r->error, r->result, (int64_t)r->done,
                          (int64_t)r->total, r->ended, r->id);
    return n < 0 ? n : n == 0 ? error_set(err, ENOENT, "no job '%s'", r->id) : 0;
}

int catalogue_job_step(struct catalogue *c, const struct job_record *r, struct error *err)
{
    LOCK_SCOPE(&c->lock);
    statement_flush_level(c, false);
    int n = catalogue_job_update(c, r, err);
    statement_flush_level(c, true);
    return n;
}

int catalogue_job_progress(struct catalogue *c, const char *id, uint64_t done, uint64_t total, struct error *err)
{
    LOCK_SCOPE(&c->lock);
    statement_flush_level(c, false);
    int n = statement_run(c, err, "UPDATE jobs SET done = ?, total = ? WHERE id = ?", "iit", (int64_t)done,
                          (int64_t)total, id);
    statement_flush_level(c, true);
    return n < 0 ? n : 0;
}

int catalogue_job_find(struct catalogue *c, const char *id, struct job_record *ret_record, struct error *err)
{
    struct job_record record = {0};
    int r =
        statement_row(c, job_fill, &record, "job", id, err, "SELECT " JOB_COLUMNS " FROM jobs WHERE id = ?", "t", id);
    if (r == 0)
        *ret_record = record;
    return r;
}

int catalogue_job_list(struct catalogue *c, const char *state, unsigned limit, struct job_record **ret_records,
                       size_t *ret_count, struct error *err)
{
    if (state && strcmp(state, "active") == 0)
        return statement_rows(c, job_fill, sizeof(struct job_record), (void **)ret_records, ret_count, err,
                              "SELECT " JOB_COLUMNS " FROM jobs WHERE ended = 0 ORDER BY number LIMIT ?", "i",
                              (int64_t)limit);
    return statement_rows(c, job_fill, sizeof(struct job_record), (void **)ret_records, ret_count, err,
                          "SELECT " JOB_COLUMNS " FROM jobs WHERE (?1 IS NULL OR state = ?1)"
                          " ORDER BY number DESC LIMIT ?2",
                          "ni", state, (int64_t)limit);
}

static int job_id_fill(sqlite3_stmt *row, void *record)
{
    column_text(row, 0, record, ID_MAX);
    return 0;
}

int catalogue_job_active(struct catalogue *c, const char *object_id, char ret_id[ID_MAX], struct error *err)
{
    return statement_row(c, job_id_fill, ret_id, "active job of", object_id, err,
                         "SELECT id FROM jobs WHERE ended = 0 AND (volume_id = ?1 OR attachment_id = ?1 OR EXISTS"
                         " (SELECT 1 FROM json_each(CASE WHEN json_valid(data) THEN data END, '$.volumes') AS v"
                         "  WHERE v.value = ?1))"
                         " ORDER BY number DESC LIMIT 1",
                         "t", object_id);
}

int catalogue_job_trim(struct catalogue *c, unsigned keep, struct error *err)
{
    int n = statement_run(c, err, "DELETE FROM jobs WHERE ended <> 0 AND number <= (SELECT max(number) FROM jobs) - ?",
                          "i", (int64_t)keep);
    return n < 0 ? n : 0;
}
