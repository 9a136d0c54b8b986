// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "provisioner/catalogue/statement.h"

#define LAYER_COLUMNS                                                                                                  \
    "id, volume_id, pool_id, parent_id, format, size, cluster_size, version, refcount_bits, extended_l2, compression," \
    " frozen, created, preserved"
#define LAYER_CHAIN_MAX 512

static int layer_fill(sqlite3_stmt *row, void *record)
{
    struct layer_record *r = record;
    *r = (struct layer_record){.size = (uint64_t)sqlite3_column_int64(row, 5),
                               .cluster_size = (uint32_t)sqlite3_column_int64(row, 6),
                               .version = (uint32_t)sqlite3_column_int64(row, 7),
                               .refcount_bits = (uint32_t)sqlite3_column_int64(row, 8),
                               .extended_l2 = sqlite3_column_int(row, 9) != 0,
                               .frozen = sqlite3_column_int(row, 11) != 0,
                               .created = sqlite3_column_int64(row, 12),
                               .preserved = sqlite3_column_int(row, 13) != 0};
    column_text(row, 0, r->id, sizeof(r->id));
    column_text(row, 1, r->volume_id, sizeof(r->volume_id));
    column_text(row, 2, r->pool_id, sizeof(r->pool_id));
    column_text(row, 3, r->parent_id, sizeof(r->parent_id));
    column_text(row, 4, r->format, sizeof(r->format));
    column_text(row, 10, r->compression, sizeof(r->compression));
    return 0;
}

int catalogue_layer_insert(struct catalogue *c, const struct layer_record *r, struct error *err)
{
    int n =
        statement_run(c, err, "INSERT INTO layers (" LAYER_COLUMNS ") VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                      "tttntiiiiitiii", r->id, r->volume_id, r->pool_id, r->parent_id, r->format, (int64_t)r->size,
                      (int64_t)r->cluster_size, (int64_t)r->version, (int64_t)r->refcount_bits, (int64_t)r->extended_l2,
                      r->compression, (int64_t)r->frozen, r->created, (int64_t)r->preserved);
    return n < 0 ? n : 0;
}

int catalogue_layer_update(struct catalogue *c, const struct layer_record *r, struct error *err)
{
    int n = statement_run(c, err,
                          "UPDATE layers SET parent_id = ?, size = ?, cluster_size = ?, version = ?, refcount_bits = ?,"
                          " extended_l2 = ?, compression = ?, frozen = ?, preserved = ? WHERE id = ?",
                          "niiiiitiit", r->parent_id, (int64_t)r->size, (int64_t)r->cluster_size, (int64_t)r->version,
                          (int64_t)r->refcount_bits, (int64_t)r->extended_l2, r->compression, (int64_t)r->frozen,
                          (int64_t)r->preserved, r->id);
    return n < 0 ? n : n == 0 ? error_set(err, ENOENT, "no layer '%s'", r->id) : 0;
}

int catalogue_layer_delete(struct catalogue *c, const char *id, struct error *err)
{
    int n = statement_run(c, err, "DELETE FROM layers WHERE id = ?", "t", id);
    return n < 0 ? n : n == 0 ? error_set(err, ENOENT, "no layer '%s'", id) : 0;
}

int catalogue_layer_find(struct catalogue *c, const char *id, struct layer_record *ret_record, struct error *err)
{
    struct layer_record record;
    int r = statement_row(c, layer_fill, &record, "layer", id, err, "SELECT " LAYER_COLUMNS " FROM layers WHERE id = ?",
                          "t", id);
    if (r == 0)
        *ret_record = record;
    return r;
}

int catalogue_layer_chain(struct catalogue *c, const char *top, struct layer_record **ret_records, size_t *ret_count,
                          struct error *err)
{
    CLEANUP_FREE struct layer_record *chain = calloc(LAYER_CHAIN_MAX, sizeof(*chain));
    if (!chain)
        return error_sys(err, ENOMEM, "catalogue: layers");
    LOCK_SCOPE(&c->lock);
    size_t count = 0;
    for (const char *id = top; *id; id = chain[count - 1].parent_id) {
        if (count == LAYER_CHAIN_MAX)
            return error_set(err, EUCLEAN, "layer '%s' has more than %d layers below it", top, LAYER_CHAIN_MAX);
        int r = catalogue_layer_find(c, id, &chain[count], err);
        if (r < 0)
            return r;
        count++;
    }
    *ret_records = steal_ptr(&chain);
    *ret_count = count;
    return 0;
}

int catalogue_layer_owned(struct catalogue *c, const char *volume_id, struct layer_record **ret_records,
                          size_t *ret_count, struct error *err)
{
    return statement_rows(c, layer_fill, sizeof(struct layer_record), (void **)ret_records, ret_count, err,
                          "SELECT " LAYER_COLUMNS " FROM layers WHERE volume_id = ?", "t", volume_id);
}

int catalogue_layer_unneeded(struct catalogue *c, const char *volume_id, struct layer_record **ret_records,
                             size_t *ret_count, struct error *err)
{
    return statement_rows(c, layer_fill, sizeof(struct layer_record), (void **)ret_records, ret_count, err,
                          "SELECT " LAYER_COLUMNS " FROM layers l WHERE volume_id = ?"
                          " AND NOT EXISTS (SELECT 1 FROM volumes WHERE top_layer = l.id)"
                          " AND NOT EXISTS (SELECT 1 FROM snapshots WHERE layer_id = l.id)"
                          " AND (SELECT count(*) FROM layers WHERE parent_id = l.id) <= 1",
                          "t", volume_id);
}

int catalogue_layer_child(struct catalogue *c, const char *id, struct layer_record *ret_record, struct error *err)
{
    struct layer_record record;
    int r = statement_row(c, layer_fill, &record, "layer above", id, err,
                          "SELECT " LAYER_COLUMNS " FROM layers WHERE parent_id = ? LIMIT 1", "t", id);
    if (r == 0)
        *ret_record = record;
    return r;
}

static int use_fill(sqlite3_stmt *row, void *record)
{
    *(struct layer_use *)record = (struct layer_use){.children = (uint64_t)sqlite3_column_int64(row, 0),
                                                     .tops = (uint64_t)sqlite3_column_int64(row, 1),
                                                     .snapshots = (uint64_t)sqlite3_column_int64(row, 2),
                                                     .foreign = (uint64_t)sqlite3_column_int64(row, 3),
                                                     .busy = (uint64_t)sqlite3_column_int64(row, 4)};
    return 0;
}

int catalogue_layer_use(struct catalogue *c, const struct layer_record *layer, struct layer_use *ret_use,
                        struct error *err)
{
    return statement_row(c, use_fill, ret_use, "layer", layer->id, err,
                         "WITH RECURSIVE above(id, volume_id) AS (SELECT id, volume_id FROM layers WHERE parent_id = ?1"
                         "  UNION ALL SELECT l.id, l.volume_id FROM layers l JOIN above a ON l.parent_id = a.id)"
                         " SELECT (SELECT count(*) FROM layers WHERE parent_id = ?1),"
                         "  (SELECT count(*) FROM volumes WHERE top_layer = ?1),"
                         "  (SELECT count(*) FROM snapshots WHERE layer_id = ?1),"
                         "  (SELECT count(*) FROM above WHERE volume_id <> ?2),"
                         "  (SELECT count(*) FROM attachments WHERE volume_id <> ?2"
                         "    AND volume_id IN (SELECT volume_id FROM above))",
                         "tt", layer->id, layer->volume_id);
}

int catalogue_layer_merge(struct catalogue *c, const struct layer_record *lower, const struct layer_record *upper,
                          struct error *err)
{
    struct layer_record merged = *lower;
    memcpy(merged.id, upper->id, sizeof(merged.id));
    merged.size = upper->size;
    merged.frozen = upper->frozen;
    int n = statement_run(c, err, "UPDATE layers SET format = ? WHERE id = ?", "tt", merged.format, merged.id);
    int r = n < 0 ? n : catalogue_layer_update(c, &merged, err);
    return r < 0 ? r : catalogue_layer_delete(c, lower->id, err);
}

static int id_fill(sqlite3_stmt *row, void *record)
{
    column_text(row, 0, record, ID_MAX);
    return 0;
}

int catalogue_layer_owners(struct catalogue *c, char (**ret_ids)[ID_MAX], size_t *ret_count, struct error *err)
{
    return statement_rows(c, id_fill, ID_MAX, (void **)ret_ids, ret_count, err,
                          "SELECT volume_id FROM layers GROUP BY volume_id HAVING count(*) > 1", "");
}

int catalogue_layer_hand_over(struct catalogue *c, const char *volume_id, char ret_heir[ID_MAX], struct error *err)
{
    CLEANUP_FREE struct layer_record *layers = NULL;
    size_t count = 0;
    char heir[ID_MAX] = "";
    int r = catalogue_layer_owned(c, volume_id, &layers, &count, err);
    for (size_t i = 0; r == 0 && i < count; i++) {
        struct layer_use use;
        r = catalogue_layer_use(c, &layers[i], &use, err);
        if (r < 0 || use.foreign == 0)
            continue;
        r = statement_row(
            c, id_fill, heir, "layer", layers[i].id, err,
            "WITH RECURSIVE above(id, volume_id) AS (SELECT id, volume_id FROM layers WHERE parent_id = ?1"
            "  UNION ALL SELECT l.id, l.volume_id FROM layers l JOIN above a ON l.parent_id = a.id)"
            " SELECT volume_id FROM above WHERE volume_id <> ?2 ORDER BY id LIMIT 1",
            "tt", layers[i].id, volume_id);
        if (r == 0)
            r = MIN(0, statement_run(c, err, "UPDATE layers SET volume_id = ? WHERE id = ?", "tt", heir, layers[i].id));
    }
    if (r == 0)
        memcpy(ret_heir, heir, ID_MAX);
    return r;
}

int catalogue_layer_list(struct catalogue *c, const char *pool_id, struct layer_record **ret_records, size_t *ret_count,
                         struct error *err)
{
    return statement_rows(c, layer_fill, sizeof(struct layer_record), (void **)ret_records, ret_count, err,
                          "SELECT " LAYER_COLUMNS " FROM layers WHERE (?1 IS NULL OR pool_id = ?1)", "n", pool_id);
}
