// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "common/cleanup.h"
#include "provisioner/catalogue/statement.h"

static int event_fill(sqlite3_stmt *row, void *record)
{
    struct event_record *r = record;
    *r = (struct event_record){.seq = (uint64_t)sqlite3_column_int64(row, 0), .time = sqlite3_column_int64(row, 1)};
    column_text(row, 2, r->kind, sizeof(r->kind));
    column_text(row, 3, r->object, sizeof(r->object));
    return column_copy(row, 4, &r->data);
}

void event_records_free(struct event_record *records, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(records[i].data);
    free(records);
}

int catalogue_event_insert(struct catalogue *c, const char *kind, const char *object, const char *data,
                           uint64_t *ret_seq, struct error *err)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    int64_t time = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    LOCK_SCOPE(&c->lock);
    statement_flush_level(c, false);
    int n = statement_run(c, err, "INSERT INTO events (time, kind, object, data) VALUES (?,?,?,?)", "ittn", time, kind,
                          object, data);
    uint64_t seq = (uint64_t)sqlite3_last_insert_rowid(c->db);
    statement_flush_level(c, true);
    if (n < 0)
        return n;
    *ret_seq = seq;
    return 0;
}

int catalogue_event_list(struct catalogue *c, uint64_t after, unsigned limit, struct event_record **ret_records,
                         size_t *ret_count, struct error *err)
{
    return statement_rows(c, event_fill, sizeof(struct event_record), (void **)ret_records, ret_count, err,
                          "SELECT seq, time, kind, object, data FROM events WHERE seq > ? ORDER BY seq LIMIT ?", "ii",
                          (int64_t)after, (int64_t)limit);
}

static int seq_fill(sqlite3_stmt *row, void *record)
{
    *(uint64_t *)record = (uint64_t)sqlite3_column_int64(row, 0);
    return 0;
}

int catalogue_event_last(struct catalogue *c, uint64_t *ret_seq, struct error *err)
{
    return statement_row(c, seq_fill, ret_seq, "event", "", err, "SELECT coalesce(max(seq), 0) FROM events", "");
}

int catalogue_event_trim(struct catalogue *c, unsigned keep, struct error *err)
{
    int n =
        statement_run(c, err, "DELETE FROM events WHERE seq <= (SELECT max(seq) FROM events) - ?", "i", (int64_t)keep);
    return n < 0 ? n : 0;
}
