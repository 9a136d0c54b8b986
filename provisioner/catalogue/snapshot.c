// SPDX-License-Identifier: Apache-2.0
#include <errno.h>

#include "provisioner/catalogue/statement.h"

#define SNAPSHOT_COLUMNS                                                                                               \
    "id, name, volume_id, layer_id, state, size, consistency, filesystem, formatted, content, behind, created, "       \
    "origin, group_id"

static int snapshot_fill(sqlite3_stmt *row, void *record)
{
    struct snapshot_record *r = record;
    *r = (struct snapshot_record){.size = (uint64_t)sqlite3_column_int64(row, 5),
                                  .formatted = sqlite3_column_int(row, 8) != 0,
                                  .behind = sqlite3_column_int(row, 10) != 0,
                                  .created = sqlite3_column_int64(row, 11)};
    column_text(row, 0, r->id, sizeof(r->id));
    column_text(row, 1, r->name, sizeof(r->name));
    column_text(row, 2, r->volume_id, sizeof(r->volume_id));
    column_text(row, 3, r->layer_id, sizeof(r->layer_id));
    column_text(row, 4, r->state, sizeof(r->state));
    column_text(row, 6, r->consistency, sizeof(r->consistency));
    column_text(row, 7, r->filesystem, sizeof(r->filesystem));
    column_text(row, 9, r->content, sizeof(r->content));
    column_text(row, 12, r->origin, sizeof(r->origin));
    column_text(row, 13, r->group_id, sizeof(r->group_id));
    return 0;
}

int catalogue_snapshot_insert(struct catalogue *c, const struct snapshot_record *r, struct error *err)
{
    int n = statement_run(c, err, "INSERT INTO snapshots (" SNAPSHOT_COLUMNS ") VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                          "tttttittitiitt", r->id, r->name, r->volume_id, r->layer_id, r->state, (int64_t)r->size,
                          r->consistency, r->filesystem, (int64_t)r->formatted, r->content, (int64_t)r->behind,
                          r->created, r->origin, r->group_id);
    return n < 0 ? n : 0;
}

int catalogue_snapshot_update(struct catalogue *c, const struct snapshot_record *r, struct error *err)
{
    int n = statement_run(c, err,
                          "UPDATE snapshots SET layer_id = ?, state = ?, size = ?, consistency = ?, filesystem = ?,"
                          " formatted = ?, content = ?, behind = ?, created = ?, group_id = ? WHERE id = ?",
                          "ttittitiitt", r->layer_id, r->state, (int64_t)r->size, r->consistency, r->filesystem,
                          (int64_t)r->formatted, r->content, (int64_t)r->behind, r->created, r->group_id, r->id);
    return n < 0 ? n : n == 0 ? error_set(err, ENOENT, "no snapshot '%s'", r->id) : 0;
}

int catalogue_snapshot_delete(struct catalogue *c, const char *id, struct error *err)
{
    int n = statement_run(c, err, "DELETE FROM snapshots WHERE id = ?", "t", id);
    return n < 0 ? n : n == 0 ? error_set(err, ENOENT, "no snapshot '%s'", id) : 0;
}

int catalogue_snapshot_find(struct catalogue *c, const char *volume_id, const char *name_or_id,
                            struct snapshot_record *ret_record, struct error *err)
{
    struct snapshot_record record;
    int r = statement_row(c, snapshot_fill, &record, "snapshot", name_or_id, err,
                          "SELECT " SNAPSHOT_COLUMNS " FROM snapshots WHERE volume_id = ?1 AND (name = ?2 OR id = ?2)"
                          " ORDER BY id = ?2 LIMIT 1",
                          "tt", volume_id, name_or_id);
    if (r == 0)
        *ret_record = record;
    return r;
}

int catalogue_snapshot_by_id(struct catalogue *c, const char *id, struct snapshot_record *ret_record, struct error *err)
{
    struct snapshot_record record;
    int r = statement_row(c, snapshot_fill, &record, "snapshot", id, err,
                          "SELECT " SNAPSHOT_COLUMNS " FROM snapshots WHERE id = ?", "t", id);
    if (r == 0)
        *ret_record = record;
    return r;
}

int catalogue_snapshot_list(struct catalogue *c, const char *volume_id, const char *after, unsigned limit,
                            struct snapshot_record **ret_records, size_t *ret_count, struct error *err)
{
    return statement_rows(c, snapshot_fill, sizeof(struct snapshot_record), (void **)ret_records, ret_count, err,
                          "SELECT " SNAPSHOT_COLUMNS " FROM snapshots WHERE (?1 IS NULL OR volume_id = ?1)"
                          " AND rowid > coalesce((SELECT rowid FROM snapshots WHERE id = ?2), 0)"
                          " ORDER BY rowid LIMIT ?3",
                          "nni", volume_id, after, (int64_t)limit);
}

int catalogue_snapshot_group(struct catalogue *c, const char *group_id, struct snapshot_record **ret_records,
                             size_t *ret_count, struct error *err)
{
    return statement_rows(c, snapshot_fill, sizeof(struct snapshot_record), (void **)ret_records, ret_count, err,
                          "SELECT " SNAPSHOT_COLUMNS " FROM snapshots WHERE group_id = ?1 AND ?1 <> '' ORDER BY rowid",
                          "t", group_id);
}

int catalogue_snapshot_delete_all(struct catalogue *c, const char *volume_id, struct error *err)
{
    int n = statement_run(c, err, "DELETE FROM snapshots WHERE volume_id = ?", "t", volume_id);
    return n < 0 ? n : 0;
}
