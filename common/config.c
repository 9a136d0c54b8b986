// SPDX-License-Identifier: Apache-2.0
/*
 * Reading the configuration with libinih. The table below is the whole grammar: section, key and the function that
 * turns the text into a field. libinih reports the first line whose handler refused it; the reason is kept here.
 */
#include "common/config.h"

#include <dirent.h>
#include <errno.h>
#include <fnmatch.h>
#include <grp.h>
#include <ini.h>
#include <limits.h>
#include <pwd.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/cleanup.h"

#define GROUP_DEFAULT "platter"
#define NSS_BUFFER_SIZE 16384

struct config_key {
    const char *section;
    const char *name;
    size_t offset;
    int (*parse)(const char *value, void *field, struct error *err);
};

static int set_string(char **field, const char *value)
{
    char *copy = strdup(value);
    if (!copy)
        return -ENOMEM;
    free(*field);
    *field = copy;
    return 0;
}

static int parse_path(const char *value, void *field, struct error *err)
{
    if (value[0] != '/')
        return error_set(err, EINVAL, "'%s' is not an absolute path", value);
    if (strlen(value) >= PATH_MAX)
        return error_set(err, ENAMETOOLONG, "the path is too long");
    return set_string(field, value);
}

static int parse_word(const char *value, void *field, struct error *err)
{
    if (strpbrk(value, " \t,/@"))
        return error_set(err, EINVAL, "'%s' is not a group's name", value);
    return set_string(field, value);
}

static int parse_number(const char *value, int base, unsigned long max, unsigned long *ret_number, struct error *err)
{
    char *end;
    errno = 0;
    unsigned long number = strtoul(value, &end, base);
    if (errno || end == value || *end || value[0] == '-' || value[0] == '+' || number > max)
        return error_set(err, EINVAL, "'%s' is not a number up to %lu", value, max);
    *ret_number = number;
    return 0;
}

static int parse_rate(const char *value, void *field, struct error *err)
{
    unsigned long number;
    int r = parse_number(value, 10, CONFIG_MERGE_RATE_MAX, &number, err);
    if (r == 0)
        *(uint64_t *)field = number;
    return r;
}

static int parse_workers(const char *value, void *field, struct error *err)
{
    unsigned long number;
    int r = parse_number(value, 10, CONFIG_WORKERS_MAX, &number, err);
    if (r < 0)
        return r;
    if (number == 0)
        return error_set(err, EINVAL, "at least one worker is needed");
    *(unsigned *)field = (unsigned)number;
    return 0;
}

static int parse_mode(const char *value, void *field, struct error *err)
{
    unsigned long number;
    int r = parse_number(value, 8, 0777, &number, err);
    if (r < 0)
        return error_set(err, EINVAL, "'%s' is not an octal mode", value);
    if ((number & 0600) != 0600 || (number & 0111))
        return error_set(err, EINVAL, "mode %s would lock the owner out or mark the socket executable", value);
    *(mode_t *)field = (mode_t)number;
    return 0;
}

static int parse_log_level(const char *value, void *field, struct error *err)
{
    if (log_level_parse(value, field) < 0)
        return error_set(err, EINVAL, "'%s' is none of error, warning, info, debug", value);
    return 0;
}

static int find_group(const char *name, gid_t *ret_gid, struct error *err)
{
    unsigned long number;
    if (parse_number(name, 10, UINT_MAX - 1, &number, NULL) == 0) {
        *ret_gid = (gid_t)number;
        return 0;
    }
    CLEANUP_FREE char *buf = malloc(NSS_BUFFER_SIZE);
    struct group group, *found = NULL;
    if (!buf)
        return -ENOMEM;
    int r = getgrnam_r(name, &group, buf, NSS_BUFFER_SIZE, &found);
    if (!found)
        return error_set(err, r ? r : ENOENT, "there is no group '%s'", name);
    *ret_gid = group.gr_gid;
    return 0;
}

static int find_user(const char *name, uid_t *ret_uid, struct error *err)
{
    unsigned long number;
    if (parse_number(name, 10, UINT_MAX - 1, &number, NULL) == 0) {
        *ret_uid = (uid_t)number;
        return 0;
    }
    CLEANUP_FREE char *buf = malloc(NSS_BUFFER_SIZE);
    struct passwd user, *found = NULL;
    if (!buf)
        return -ENOMEM;
    int r = getpwnam_r(name, &user, buf, NSS_BUFFER_SIZE, &found);
    if (!found)
        return error_set(err, r ? r : ENOENT, "there is no user '%s'", name);
    *ret_uid = user.pw_uid;
    return 0;
}

static int parse_list(const char *value, void *field, struct error *err)
{
    struct config_list list = {0};
    CLEANUP_FREE char *copy = strdup(value);
    char *state = NULL;
    if (!copy)
        return -ENOMEM;
    for (char *word = strtok_r(copy, ", \t", &state); word; word = strtok_r(NULL, ", \t", &state)) {
        if (list.uid_count == CONFIG_LIST_MAX || list.gid_count == CONFIG_LIST_MAX)
            return error_set(err, EINVAL, "more than %d names", CONFIG_LIST_MAX);
        int r = word[0] == '@' ? find_group(word + 1, &list.gids[list.gid_count], err)
                               : find_user(word, &list.uids[list.uid_count], err);
        if (r < 0)
            return r;
        if (word[0] == '@')
            list.gid_count++;
        else
            list.uid_count++;
    }
    *(struct config_list *)field = list;
    return 0;
}

static const struct config_key config_keys[] = {
    {"platterd", "state_dir", offsetof(struct config, state_dir), parse_path},
    {"platterd", "runtime_dir", offsetof(struct config, runtime_dir), parse_path},
    {"platterd", "socket", offsetof(struct config, socket), parse_path},
    {"platterd", "blk", offsetof(struct config, blk), parse_path},
    {"platterd", "log_level", offsetof(struct config, log_level), parse_log_level},
    {"platterd", "workers", offsetof(struct config, workers), parse_workers},
    {"platterd", "merge_rate", offsetof(struct config, merge_rate), parse_rate},
    {"access", "group", offsetof(struct config, group), parse_word},
    {"access", "socket_mode", offsetof(struct config, socket_mode), parse_mode},
    {"access", "admins", offsetof(struct config, admins), parse_list},
    {"access", "operators", offsetof(struct config, operators), parse_list},
    {"access", "viewers", offsetof(struct config, viewers), parse_list},
};

int config_init(struct config *config)
{
    *config = (struct config){
        .group_id = (gid_t)-1,
        .socket_mode = 0660,
        .log_level = LOG_LEVEL_INFO,
        .workers = 16,
        .merge_rate = 64,
    };
    int r = set_string(&config->state_dir, "/var/lib/platter");
    if (r == 0)
        r = set_string(&config->runtime_dir, "/run/platter");
    if (r == 0)
        r = set_string(&config->group, GROUP_DEFAULT);
    if (r < 0)
        config_clear(config);
    return r;
}

void config_clear(struct config *config)
{
    free(config->state_dir);
    free(config->runtime_dir);
    free(config->socket);
    free(config->blk);
    free(config->group);
    *config = (struct config){.group_id = (gid_t)-1};
}

int config_set(struct config *config, const char *section, const char *key, const char *value, struct error *err)
{
    bool section_known = false;
    for (size_t i = 0; i < ARRAY_SIZE(config_keys); i++) {
        const struct config_key *entry = &config_keys[i];
        if (strcmp(entry->section, section) != 0)
            continue;
        section_known = true;
        if (strcmp(entry->name, key) != 0)
            continue;
        int r = entry->parse(value, (char *)config + entry->offset, err);
        if (r == -ENOMEM)
            return error_set(err, ENOMEM, "out of memory");
        return r < 0 ? error_prefix(err, "%s", key) : 0;
    }
    if (!section_known)
        return error_set(err, EINVAL, "unknown section [%s]", section);
    return error_set(err, EINVAL, "unknown key '%s' in [%s]", key, section);
}

struct reading {
    struct config *config;
    FILE *file;
    int line;           /* of the one read last */
    struct error first; /* why the first refused line was refused */
};

static int handle_line(void *user, const char *section, const char *key, const char *value)
{
    struct reading *reading = user;
    if (reading->first.errnum)
        return 1;
    return config_set(reading->config, section, key, value, &reading->first) == 0;
}

/* libinih would cut a line that is longer than its buffer, and takes an indented one for more of the value above:
 * both would change a value silently, so both end the reading. */
static char *next_line(char *buf, int size, void *stream)
{
    struct reading *reading = stream;
    if (reading->first.errnum || !fgets(buf, size, reading->file))
        return NULL;
    reading->line++;
    if (!strchr(buf, '\n') && !feof(reading->file))
        (void)error_set(&reading->first, EINVAL, "the line is longer than %d characters", size - 2);
    else if ((buf[0] == ' ' || buf[0] == '\t') && !strchr(";#\n", buf[strspn(buf, " \t")]))
        (void)error_set(&reading->first, EINVAL, "the line is indented: a value ends with its line");
    return reading->first.errnum ? NULL : buf;
}

static int read_file(struct config *config, const char *path, struct error *err)
{
    CLEANUP_FCLOSE FILE *file = fopen(path, "re");
    if (!file)
        return error_sys(err, errno, "%s", path);
    struct reading reading = {.config = config, .file = file};
    int line = ini_parse_stream(next_line, &reading, handle_line, &reading);
    if (ferror(file))
        return error_set(err, EIO, "%s: cannot be read", path);
    if (line < 0)
        return error_set(err, ENOMEM, "%s: out of memory", path);
    if (reading.first.errnum)
        return error_set(err, EINVAL, "%s:%d: %s", path, line ? line : reading.line, reading.first.message);
    if (line > 0)
        return error_set(err, EINVAL, "%s:%d: neither [section] nor key = value", path, line);
    return 0;
}

static int is_conf(const struct dirent *entry)
{
    return entry->d_name[0] != '.' && fnmatch("*.conf", entry->d_name, 0) == 0;
}

static int compare_names(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name); /* not alphasort: the order must not depend on the locale */
}

int config_read(struct config *config, const char *path, int required, struct error *err)
{
    int r = read_file(config, path, err);
    if (r == -ENOENT && !required)
        r = 0;
    if (r < 0)
        return r;

    char directory[PATH_MAX];
    const char *slash = strrchr(path, '/');
    int n = snprintf(directory, sizeof(directory), "%.*sconf.d", slash ? (int)(slash + 1 - path) : 0, path);
    if (n < 0 || (size_t)n >= sizeof(directory))
        return error_set(err, ENAMETOOLONG, "%s: the path is too long", path);
    struct dirent **entries = NULL;
    int count = scandir(directory, &entries, is_conf, compare_names);
    if (count < 0)
        return errno == ENOENT ? 0 : error_sys(err, errno, "%s", directory);
    for (int i = 0; i < count; i++) {
        char file[PATH_MAX + NAME_MAX + 2];
        (void)snprintf(file, sizeof(file), "%s/%s", directory, entries[i]->d_name);
        if (r == 0)
            r = read_file(config, file, err);
        free(entries[i]);
    }
    free(entries);
    return r;
}

int config_complete(struct config *config, struct error *err)
{
    if (!config->socket && asprintf(&config->socket, "%s/platter.sock", config->runtime_dir) < 0) {
        config->socket = NULL;
        return error_set(err, ENOMEM, "out of memory");
    }
    if (strlen(config->socket) >= 108) /* sockaddr_un.sun_path */
        return error_set(err, ENAMETOOLONG, "socket: '%s' is longer than a Unix socket's path may be", config->socket);
    config->group_id = (gid_t)-1;
    if (!config->group[0])
        return 0;
    int r = find_group(config->group, &config->group_id, err);
    if (r == -ENOENT && strcmp(config->group, GROUP_DEFAULT) == 0)
        return 0;
    return r < 0 ? error_prefix(err, "group") : 0;
}
