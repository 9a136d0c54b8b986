/* SPDX-License-Identifier: Apache-2.0 */
/*
 * platterd's configuration: an INI file and the *.conf files of the directory conf.d beside it, in name order, later
 * values winning. What is not known is refused with its file and line, so a typing error never becomes a default.
 *
 *   [platterd]
 *   state_dir = /var/lib/platter     the catalogue and the lock
 *   runtime_dir = /run/platter       sockets of platterd and of the block servers
 *   socket = /run/platter/platter.sock
 *   blk = /usr/libexec/platter/platter-blk
 *   log_level = info                 error, warning, info, debug
 *   workers = 16                     steps that block run on this many threads, 1..64
 *   merge_rate = 64                  MiB a second that merging layers of an attached volume copies at most; 0 = no bound
 *   [access]
 *   group = platter                  owns the socket; its members are operators
 *   socket_mode = 0660               wider only if the lists below name people outside the group
 *   admins = alice, @wheel           users and @groups, by name or number
 *   operators = ...
 *   viewers = ...
 *
 * Values are read once by main; the struct is read-only afterwards. Blocks on file I/O and NSS.
 */
#ifndef PLATTER_COMMON_CONFIG_H
#define PLATTER_COMMON_CONFIG_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"
#include "common/log.h"

#define CONFIG_PATH_DEFAULT "/etc/platter/platterd.conf"
#define CONFIG_WORKERS_MAX 64
#define CONFIG_LIST_MAX 64
#define CONFIG_MERGE_RATE_MAX 1000000

/* People: user ids and group ids. */
struct config_list {
    uid_t uids[CONFIG_LIST_MAX];
    size_t uid_count;
    gid_t gids[CONFIG_LIST_MAX];
    size_t gid_count;
};

struct config {
    char *state_dir;
    char *runtime_dir;
    char *socket;   /* always set after config_complete */
    char *blk;      /* platter-blk; NULL = beside platterd's own binary */
    char *group;    /* "" = no group */
    gid_t group_id; /* (gid_t)-1 = none; set by config_complete */
    mode_t socket_mode;
    enum log_level log_level;
    unsigned workers;
    uint64_t merge_rate; /* MiB a second; 0 = no bound */
    struct config_list admins;
    struct config_list operators;
    struct config_list viewers;
};

/* Fill `config` with the defaults. Release with config_clear. -ENOMEM. */
int config_init(struct config *config);
void config_clear(struct config *config);

/* Read `path` and the conf.d beside it over what `config` holds. `required` false: a missing main file is no error
 * (conf.d is read all the same). -EINVAL with "FILE:LINE: ..." for a bad line, -errno for an unreadable file. */
int config_read(struct config *config, const char *path, int required, struct error *err);

/* Replace one value by hand, as the command line does: 0, or -EINVAL with a message. */
int config_set(struct config *config, const char *section, const char *key, const char *value, struct error *err);

/* Derive what was not given (socket, group_id) and check what must hold between values. A group that does not exist
 * is an error only if it is not the default one. */
int config_complete(struct config *config, struct error *err);

#endif
