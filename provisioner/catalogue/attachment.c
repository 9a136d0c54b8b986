// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "provisioner/catalogue/statement.h"

#define ATTACHMENT_COLUMNS                                                                                             \
    "id, volume_id, kind, state, read_only, target, via, holder, boot_id, uid, gid, pid, data, created, snapshot_id"

static int attachment_fill(sqlite3_stmt *row, void *record)
{
    struct attachment_record *r = record;
    *r = (struct attachment_record){.read_only = sqlite3_column_int(row, 4) != 0,
                                    .uid = (uint32_t)sqlite3_column_int64(row, 9),
                                    .gid = (uint32_t)sqlite3_column_int64(row, 10),
                                    .pid = sqlite3_column_int(row, 11),
                                    .created = sqlite3_column_int64(row, 13)};
    column_text(row, 0, r->id, sizeof(r->id));
    column_text(row, 1, r->volume_id, sizeof(r->volume_id));
    column_text(row, 2, r->kind, sizeof(r->kind));
    column_text(row, 3, r->state, sizeof(r->state));
    column_text(row, 5, r->target, sizeof(r->target));
    column_text(row, 6, r->via, sizeof(r->via));
    column_text(row, 7, r->holder, sizeof(r->holder));
    column_text(row, 8, r->boot_id, sizeof(r->boot_id));
    column_text(row, 14, r->snapshot_id, sizeof(r->snapshot_id));
    return column_copy(row, 12, &r->data);
}

void attachment_record_done(struct attachment_record *record)
{
    free(record->data);
    record->data = NULL;
}

void attachment_records_free(struct attachment_record *records, size_t count)
{
    for (size_t i = 0; i < count; i++)
        attachment_record_done(&records[i]);
    free(records);
}

int catalogue_attachment_insert(struct catalogue *c, const struct attachment_record *r, struct error *err)
{
    int n = statement_run(
        c, err, "INSERT INTO attachments (" ATTACHMENT_COLUMNS ") VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        "ttttittttiiitin", r->id, r->volume_id, r->kind, r->state, (int64_t)r->read_only, r->target, r->via, r->holder,
        r->boot_id, (int64_t)r->uid, (int64_t)r->gid, (int64_t)r->pid, r->data, r->created, r->snapshot_id);
    return n < 0 ? n : 0;
}

int catalogue_attachment_update(struct catalogue *c, const struct attachment_record *r, struct error *err)
{
    int n = statement_run(c, err, "UPDATE attachments SET state = ?, via = ?, data = ?, boot_id = ? WHERE id = ?",
                          "ttttt", r->state, r->via, r->data, r->boot_id, r->id);
    return n < 0 ? n : n == 0 ? error_set(err, ENOENT, "no attachment '%s'", r->id) : 0;
}

int catalogue_attachment_delete(struct catalogue *c, const char *id, struct error *err)
{
    int n = statement_run(c, err, "DELETE FROM attachments WHERE id = ?", "t", id);
    return n < 0 ? n : n == 0 ? error_set(err, ENOENT, "no attachment '%s'", id) : 0;
}

int catalogue_attachment_find(struct catalogue *c, const char *id_or_target, struct attachment_record *ret_record,
                              struct error *err)
{
    struct attachment_record record = {0};
    int r = statement_row(c, attachment_fill, &record, "attachment", id_or_target, err,
                          "SELECT " ATTACHMENT_COLUMNS " FROM attachments WHERE id = ?1 OR (target = ?1 AND ?1 <> '')",
                          "t", id_or_target);
    if (r == 0)
        *ret_record = record;
    return r;
}

int catalogue_attachment_list(struct catalogue *c, const char *volume_id, struct attachment_record **ret_records,
                              size_t *ret_count, struct error *err)
{
    return statement_rows(c, attachment_fill, sizeof(struct attachment_record), (void **)ret_records, ret_count, err,
                          "SELECT " ATTACHMENT_COLUMNS " FROM attachments WHERE (?1 IS NULL OR volume_id = ?1)"
                          " ORDER BY created, rowid",
                          "n", volume_id);
}
