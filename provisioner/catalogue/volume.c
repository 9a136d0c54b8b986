// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "provisioner/catalogue/statement.h"

#define VOLUME_COLUMNS                                                                                                 \
    "id, name, pool_id, kind, state, size, filesystem, formatted, content, behind, top_layer, spec, created"

static int volume_fill(sqlite3_stmt *row, void *record)
{
    struct volume_record *r = record;
    *r = (struct volume_record){.size = (uint64_t)sqlite3_column_int64(row, 5),
                                .formatted = sqlite3_column_int(row, 7) != 0,
                                .behind = sqlite3_column_int(row, 9) != 0,
                                .created = sqlite3_column_int64(row, 12)};
    column_text(row, 0, r->id, sizeof(r->id));
    column_text(row, 1, r->name, sizeof(r->name));
    column_text(row, 2, r->pool_id, sizeof(r->pool_id));
    column_text(row, 3, r->kind, sizeof(r->kind));
    column_text(row, 4, r->state, sizeof(r->state));
    column_text(row, 6, r->filesystem, sizeof(r->filesystem));
    column_text(row, 8, r->content, sizeof(r->content));
    column_text(row, 10, r->top_layer, sizeof(r->top_layer));
    column_text(row, 11, r->spec, sizeof(r->spec));
    return 0;
}

int catalogue_volume_insert(struct catalogue *c, const struct volume_record *r, struct error *err)
{
    int n =
        statement_run(c, err, "INSERT INTO volumes (" VOLUME_COLUMNS ") VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
                      "tttttitititti", r->id, r->name, r->pool_id, r->kind, r->state, (int64_t)r->size, r->filesystem,
                      (int64_t)r->formatted, r->content, (int64_t)r->behind, r->top_layer, r->spec, r->created);
    return n < 0 ? n : 0;
}

int catalogue_volume_update(struct catalogue *c, const struct volume_record *r, struct error *err)
{
    int n = statement_run(c, err,
                          "UPDATE volumes SET name = ?, kind = ?, state = ?, size = ?, filesystem = ?, formatted = ?,"
                          " content = ?, behind = ?, top_layer = ?, spec = ? WHERE id = ?",
                          "tttititittt", r->name, r->kind, r->state, (int64_t)r->size, r->filesystem,
                          (int64_t)r->formatted, r->content, (int64_t)r->behind, r->top_layer, r->spec, r->id);
    return n < 0 ? n : n == 0 ? error_set(err, ENOENT, "no volume '%s'", r->id) : 0;
}

int catalogue_volume_delete(struct catalogue *c, const char *id, struct error *err)
{
    int n = statement_run(c, err, "DELETE FROM volumes WHERE id = ?", "t", id);
    return n < 0 ? n : n == 0 ? error_set(err, ENOENT, "no volume '%s'", id) : 0;
}

int catalogue_volume_find(struct catalogue *c, const char *name_or_id, struct volume_record *ret_record,
                          struct error *err)
{
    struct volume_record record;
    int r = statement_row(c, volume_fill, &record, "volume", name_or_id, err,
                          "SELECT " VOLUME_COLUMNS " FROM volumes WHERE name = ?1 OR id = ?1 ORDER BY id = ?1 LIMIT 1",
                          "t", name_or_id);
    if (r == 0)
        *ret_record = record;
    return r;
}

int catalogue_volume_list(struct catalogue *c, const char *pool_id, const char *after, unsigned limit,
                          struct volume_record **ret_records, size_t *ret_count, struct error *err)
{
    return statement_rows(c, volume_fill, sizeof(struct volume_record), (void **)ret_records, ret_count, err,
                          "SELECT " VOLUME_COLUMNS " FROM volumes WHERE (?1 IS NULL OR pool_id = ?1)"
                          " AND (?2 IS NULL OR name > ?2) ORDER BY name LIMIT ?3",
                          "nni", pool_id, after, (int64_t)limit);
}
