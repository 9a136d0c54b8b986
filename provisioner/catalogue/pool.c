// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "provisioner/catalogue/statement.h"

#define POOL_COLUMNS "id, name, kind, path, overprovision, created"

static int pool_fill(sqlite3_stmt *row, void *record)
{
    struct pool_record *r = record;
    *r = (struct pool_record){.overprovision = sqlite3_column_double(row, 4), .created = sqlite3_column_int64(row, 5)};
    column_text(row, 0, r->id, sizeof(r->id));
    column_text(row, 1, r->name, sizeof(r->name));
    column_text(row, 2, r->kind, sizeof(r->kind));
    column_text(row, 3, r->path, sizeof(r->path));
    return 0;
}

int catalogue_pool_insert(struct catalogue *c, const struct pool_record *r, struct error *err)
{
    int n = statement_run(c, err, "INSERT INTO pools (" POOL_COLUMNS ") VALUES (?,?,?,?,?,?)", "ttttdi", r->id, r->name,
                          r->kind, r->path, r->overprovision, r->created);
    return n < 0 ? n : 0;
}

int catalogue_pool_delete(struct catalogue *c, const char *id, struct error *err)
{
    int n = statement_run(c, err, "DELETE FROM pools WHERE id = ?", "t", id);
    return n < 0 ? n : n == 0 ? error_set(err, ENOENT, "no pool '%s'", id) : 0;
}

int catalogue_pool_find(struct catalogue *c, const char *name_or_id, struct pool_record *ret_record, struct error *err)
{
    struct pool_record record;
    int r = statement_row(c, pool_fill, &record, "pool", name_or_id, err,
                          "SELECT " POOL_COLUMNS " FROM pools WHERE name = ?1 OR id = ?1 ORDER BY id = ?1 LIMIT 1", "t",
                          name_or_id);
    if (r == 0)
        *ret_record = record;
    return r;
}

int catalogue_pool_list(struct catalogue *c, struct pool_record **ret_records, size_t *ret_count, struct error *err)
{
    return statement_rows(c, pool_fill, sizeof(struct pool_record), (void **)ret_records, ret_count, err,
                          "SELECT " POOL_COLUMNS " FROM pools ORDER BY name", "");
}

struct promised {
    uint64_t bytes, volumes;
};

static int promised_fill(sqlite3_stmt *row, void *record)
{
    *(struct promised *)record = (struct promised){.bytes = (uint64_t)sqlite3_column_int64(row, 0),
                                                   .volumes = (uint64_t)sqlite3_column_int64(row, 1)};
    return 0;
}

int catalogue_pool_promised(struct catalogue *c, const char *id, uint64_t *ret_bytes, uint64_t *ret_volumes,
                            struct error *err)
{
    struct promised promised;
    int r = statement_row(c, promised_fill, &promised, "pool", id, err,
                          "SELECT coalesce(sum(size), 0), count(*) FROM volumes WHERE pool_id = ?", "t", id);
    if (r < 0)
        return r;
    *ret_bytes = promised.bytes;
    *ret_volumes = promised.volumes;
    return 0;
}
