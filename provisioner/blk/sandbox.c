// SPDX-License-Identifier: Apache-2.0
/*
 * Privileges, paths, system calls: given up in this order.
 */
#include "provisioner/blk/sandbox.h"

#include <errno.h>
#include <linux/capability.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "provisioner/blk/syscalls.h"

/* Numbers that the headers of older distributions do not have yet. */
enum {
    PRCTL_SET_IO_FLUSHER = 57,
    NR_LANDLOCK_CREATE_RULESET = 444,
    NR_LANDLOCK_RESTRICT_SELF = 446,
    LANDLOCK_VERSION = 1 << 0,
};

struct landlock_ruleset {
    uint64_t handled_access_fs;
    uint64_t handled_access_net; /* since ABI 4 */
    uint64_t scoped;             /* since ABI 6 */
};

static void raise_limit(int resource, rlim_t wanted)
{
    struct rlimit limit;
    if (getrlimit(resource, &limit) < 0 || limit.rlim_cur >= wanted)
        return;
    limit.rlim_cur = wanted;
    if (limit.rlim_max < wanted)
        limit.rlim_max = wanted;
    if (setrlimit(resource, &limit) == 0)
        return;
    (void)getrlimit(resource, &limit); /* not permitted to raise the maximum: take all that it gives */
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(resource, &limit);
}

void sandbox_prepare(void)
{
    (void)prctl(PRCTL_SET_IO_FLUSHER, 1, 0, 0, 0);
    raise_limit(RLIMIT_NOFILE, 4096);
    raise_limit(RLIMIT_MEMLOCK, (rlim_t)256 << 20);
}

static int drop_capabilities(struct error *err)
{
    for (int cap = 0; cap < 64; cap++) {
        if (prctl(PR_CAPBSET_READ, cap, 0, 0, 0) == 1 && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && errno != EPERM)
            return error_sys(err, errno, "sandbox: drop capability %d", cap);
    }
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
        return error_sys(err, errno, "sandbox: clear ambient capabilities");
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {0};
    if (syscall(SYS_capset, &header, none) < 0)
        return error_sys(err, errno, "sandbox: drop all capabilities");
    return 0;
}

/* The rights that each ABI version knows: everything is handled and no rule grants any of it. */
static struct landlock_ruleset landlock_all(int abi)
{
    unsigned fs_rights = 13;
    if (abi >= 2)
        fs_rights = 14; /* refer */
    if (abi >= 3)
        fs_rights = 15; /* truncate */
    if (abi >= 5)
        fs_rights = 16; /* ioctl on devices */
    return (struct landlock_ruleset){
        .handled_access_fs = (UINT64_C(1) << fs_rights) - 1,
        .handled_access_net = abi >= 4 ? 3 : 0, /* bind and connect TCP */
        .scoped = abi >= 6 ? 3 : 0,             /* abstract Unix sockets, signals */
    };
}

static int enter_landlock(bool *ret_landlock, struct error *err)
{
    int abi = (int)syscall(NR_LANDLOCK_CREATE_RULESET, NULL, 0, LANDLOCK_VERSION);
    if (abi < 1) {
        *ret_landlock = false;
        return 0;
    }
    struct landlock_ruleset all = landlock_all(abi);
    CLEANUP_CLOSE int ruleset = (int)syscall(NR_LANDLOCK_CREATE_RULESET, &all, sizeof(all), 0);
    if (ruleset < 0)
        return error_sys(err, errno, "sandbox: make a Landlock ruleset");
    if (syscall(NR_LANDLOCK_RESTRICT_SELF, ruleset, 0) < 0)
        return error_sys(err, errno, "sandbox: enter the Landlock domain");
    *ret_landlock = true;
    return 0;
}

int sandbox_enter(bool *ret_landlock, struct error *err)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return error_sys(err, errno, "sandbox: no new privileges");
    int r = drop_capabilities(err);
    if (r < 0)
        return r;
    if (SANDBOX_SANITIZED) {
        *ret_landlock = false;
        return 0;
    }
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
        return error_sys(err, errno, "sandbox: forbid core dumps and tracing");
    r = enter_landlock(ret_landlock, err);
    return r < 0 ? r : syscalls_restrict(err);
}
