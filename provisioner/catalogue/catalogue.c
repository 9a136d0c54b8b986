// SPDX-License-Identifier: Apache-2.0
/* The database file: opening, migrations, transactions. The tables' own files are beside this one. */
#include "provisioner/catalogue/catalogue.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "provisioner/catalogue/statement.h"

/* migrations[N] brings a catalogue from user_version N to N + 1. Never changed once released; only added to. */
static const char *const migrations[] = {
    "CREATE TABLE pools (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,"
    "  path TEXT NOT NULL UNIQUE, overprovision REAL NOT NULL, created INTEGER NOT NULL) STRICT;"
    "CREATE TABLE volumes (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, pool_id TEXT NOT NULL REFERENCES pools(id),"
    "  kind TEXT NOT NULL, state TEXT NOT NULL, size INTEGER NOT NULL, filesystem TEXT NOT NULL,"
    "  formatted INTEGER NOT NULL, content TEXT NOT NULL, behind INTEGER NOT NULL, top_layer TEXT NOT NULL, spec TEXT "
    "NOT NULL,"
    "  created INTEGER NOT NULL) STRICT;"
    "CREATE INDEX volumes_pool ON volumes(pool_id);"
    "CREATE TABLE layers (id TEXT PRIMARY KEY, volume_id TEXT NOT NULL REFERENCES volumes(id) ON DELETE CASCADE,"
    "  pool_id TEXT NOT NULL REFERENCES pools(id), parent_id TEXT REFERENCES layers(id), format TEXT NOT NULL,"
    "  size INTEGER NOT NULL, cluster_size INTEGER NOT NULL, version INTEGER NOT NULL,"
    "  refcount_bits INTEGER NOT NULL, extended_l2 INTEGER NOT NULL, compression TEXT NOT NULL,"
    "  frozen INTEGER NOT NULL, created INTEGER NOT NULL) STRICT;"
    "CREATE INDEX layers_volume ON layers(volume_id);"
    "CREATE INDEX layers_parent ON layers(parent_id);"
    "CREATE TABLE attachments (id TEXT PRIMARY KEY, volume_id TEXT NOT NULL REFERENCES volumes(id),"
    "  kind TEXT NOT NULL, state TEXT NOT NULL, read_only INTEGER NOT NULL, target TEXT NOT NULL, via TEXT NOT NULL,"
    "  holder TEXT NOT NULL, boot_id TEXT NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL, pid INTEGER NOT NULL,"
    "  data TEXT NOT NULL, created INTEGER NOT NULL) STRICT;"
    "CREATE INDEX attachments_volume ON attachments(volume_id);"
    "CREATE UNIQUE INDEX attachments_target ON attachments(target) WHERE target <> '';"
    "CREATE TABLE jobs (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,"
    "  volume_id TEXT NOT NULL, volume_name TEXT NOT NULL, attachment_id TEXT NOT NULL, state TEXT NOT NULL,"
    "  step TEXT NOT NULL, data TEXT NOT NULL, error TEXT, result TEXT, done INTEGER NOT NULL, total INTEGER NOT NULL,"
    "  created INTEGER NOT NULL, ended INTEGER NOT NULL) STRICT;"
    "CREATE INDEX jobs_active ON jobs(number) WHERE ended = 0;"
    "CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL, kind TEXT NOT NULL,"
    "  object TEXT NOT NULL, data TEXT) STRICT;",
    /* 2: snapshots, and attachments of them */
    "CREATE TABLE snapshots (id TEXT PRIMARY KEY, name TEXT NOT NULL, volume_id TEXT NOT NULL REFERENCES volumes(id),"
    "  layer_id TEXT NOT NULL REFERENCES layers(id), state TEXT NOT NULL, size INTEGER NOT NULL,"
    "  consistency TEXT NOT NULL, filesystem TEXT NOT NULL, formatted INTEGER NOT NULL, content TEXT NOT NULL,"
    "  behind INTEGER NOT NULL, created INTEGER NOT NULL, UNIQUE (volume_id, name)) STRICT;"
    "CREATE INDEX volumes_top ON volumes(top_layer);"
    "CREATE INDEX snapshots_layer ON snapshots(layer_id);"
    "ALTER TABLE attachments ADD COLUMN snapshot_id TEXT REFERENCES snapshots(id);",
    /* 3: snapshots that came from elsewhere */
    "ALTER TABLE snapshots ADD COLUMN origin TEXT NOT NULL DEFAULT '';",
    /* 4: layers that came from elsewhere and stay as they are */
    "ALTER TABLE layers ADD COLUMN preserved INTEGER NOT NULL DEFAULT 0;",
    /* 5: snapshots of several volumes at one point */
    "ALTER TABLE snapshots ADD COLUMN group_id TEXT NOT NULL DEFAULT '';"
    "CREATE INDEX snapshots_group ON snapshots(group_id) WHERE group_id <> '';",
};

static int catalogue_exec(struct catalogue *c, const char *sql, const char *what, struct error *err)
{
    int r = sqlite3_exec(c->db, sql, NULL, NULL, NULL);
    return r == SQLITE_OK ? 0 : statement_error(c, r, err, what);
}

static int fill_int(sqlite3_stmt *row, void *record)
{
    *(int64_t *)record = sqlite3_column_int64(row, 0);
    return 0;
}

static int catalogue_migrate(struct catalogue *c, struct error *err)
{
    int64_t version;
    int r = statement_row(c, fill_int, &version, "version", "", err, "PRAGMA user_version", "");
    if (r < 0)
        return r;
    if (version < 0 || version > (int64_t)ARRAY_SIZE(migrations))
        return error_set(err, EPROTONOSUPPORT, "the catalogue is of version %lld, this program knows %zu",
                         (long long)version, ARRAY_SIZE(migrations));
    for (; version < (int64_t)ARRAY_SIZE(migrations); version++) {
        r = catalogue_begin(c, err);
        if (r < 0)
            return r;
        char set[48];
        (void)snprintf(set, sizeof(set), "PRAGMA user_version=%lld", (long long)version + 1);
        r = catalogue_exec(c, migrations[version], "migrate", err);
        if (r == 0)
            r = catalogue_exec(c, set, "migrate", err);
        if (r < 0) {
            catalogue_rollback(c);
            return r;
        }
        r = catalogue_commit(c, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int catalogue_setup(struct catalogue *c, const char *path, struct error *err)
{
    CLEANUP_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return error_sys(err, errno, "open catalogue '%s'", path);
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
    if (sqlite3_open_v2(path, &c->db, flags, NULL) != SQLITE_OK)
        return error_set(err, EIO, "open catalogue '%s': %s", path, c->db ? sqlite3_errmsg(c->db) : "out of memory");
    (void)sqlite3_busy_timeout(c->db, 2000);
    int r = catalogue_exec(c,
                           "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;"
                           "PRAGMA trusted_schema=OFF",
                           "set up", err);
    return r < 0 ? r : catalogue_migrate(c, err);
}

int catalogue_open(const char *path, struct catalogue **ret_catalogue, struct error *err)
{
    struct catalogue *c = calloc(1, sizeof(*c));
    if (!c)
        return error_sys(err, ENOMEM, "open catalogue");
    pthread_mutexattr_t attributes;
    (void)pthread_mutexattr_init(&attributes);
    (void)pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    (void)pthread_mutex_init(&c->lock, &attributes);
    (void)pthread_mutexattr_destroy(&attributes);
    int r = catalogue_setup(c, path, err);
    if (r < 0) {
        catalogue_close(c);
        return r;
    }
    *ret_catalogue = c;
    return 0;
}

struct catalogue *catalogue_close(struct catalogue *c)
{
    if (!c)
        return NULL;
    for (size_t i = 0; i < c->statement_count; i++)
        (void)sqlite3_finalize(c->statements[i].prepared);
    (void)sqlite3_close_v2(c->db);
    (void)pthread_mutex_destroy(&c->lock);
    free(c);
    return NULL;
}

int catalogue_begin(struct catalogue *c, struct error *err)
{
    (void)pthread_mutex_lock(&c->lock);
    int r = catalogue_exec(c, "BEGIN IMMEDIATE", "begin", err);
    if (r < 0)
        (void)pthread_mutex_unlock(&c->lock);
    else
        c->depth = 1;
    return r;
}

int catalogue_commit(struct catalogue *c, struct error *err)
{
    int r = catalogue_exec(c, "COMMIT", "commit", err);
    if (r < 0)
        (void)sqlite3_exec(c->db, "ROLLBACK", NULL, NULL, NULL);
    c->depth = 0;
    (void)pthread_mutex_unlock(&c->lock);
    return r;
}

void catalogue_rollback(struct catalogue *c)
{
    (void)sqlite3_exec(c->db, "ROLLBACK", NULL, NULL, NULL);
    c->depth = 0;
    (void)pthread_mutex_unlock(&c->lock);
}

int catalogue_id(const char *prefix, char ret_id[ID_MAX])
{
    uint64_t number;
    ssize_t n = getrandom(&number, sizeof(number), 0);
    if (n != (ssize_t)sizeof(number))
        return n < 0 ? -errno : -EIO;
    (void)snprintf(ret_id, ID_MAX, "%s%016llx", prefix, (unsigned long long)number);
    return 0;
}

static bool name_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

bool catalogue_name_valid(const char *name)
{
    size_t length = strnlen(name, NAME_MAX_BYTES);
    if (length == 0 || length >= NAME_MAX_BYTES || !name_letter(name[0]) || strstr(name, ".."))
        return false;
    for (size_t i = 0; i < length; i++) {
        if (!name_letter(name[i]) && !strchr("._-", name[i]))
            return false;
    }
    return true;
}
