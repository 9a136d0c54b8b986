#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Who may do what: by the socket's mode, and by the roles of the configuration.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
[ "$(id -u)" = 0 ] || skip "needs root, to become others"
requires setpriv --version
chmod 0755 "$TMP"
mkdir -p "$TMP/platterd/etc"

# as UID GROUPS COMMAND...: as that user, in those groups only. The command is copied to where everybody may run it.
cp "$PLATTER_BUILD/bin/platter" "$TMP/platter-copy"
as() { local uid=$1 groups=$2; shift 2; setpriv --reuid "$uid" --regid "$uid" --groups "$groups" "$@"; }
platter_as() { local uid=$1 groups=$2; shift 2; as "$uid" "$groups" "$TMP/platter-copy" "$@"; }

cat >"$TMP/platterd/etc/platterd.conf" <<'CONF'
[access]
group = 54001
CONF
start_platterd
[ "$(stat -c '%a %g' "$PLATTER_SOCKET")" = "660 54001" ] || fail "the socket has the wrong mode or group"
make_pool
[ "$(status_of platter_as 54321 54321 version)" = 8 ] || fail "a stranger reached the socket"
platter_as 54321 54001 volume create byop --size 1M -o name | grep -qx byop || fail "a member of the group is no operator"
[ "$(status_of platter_as 54321 54001 pool delete default)" = 8 ] || fail "an operator deleted a pool"
refuses "needs the role admin" platter_as 54321 54001 pool create p2 "$TMP"
platter_as 54321 54001 volume delete byop
stop_platterd

cat >"$TMP/platterd/etc/platterd.conf" <<'CONF'
[access]
group = 54001
socket_mode = 0666
admins = 50001
operators = 50002, @50012
viewers = 50003
CONF
start_platterd
role() { as "$1" "$2" curl -sS --unix-socket "$PLATTER_SOCKET" http://platter/v1 | jq -r '.role // .error.code'; }
[ "$(role 0 0)" = admin ] || fail "root is no admin"
[ "$(role 50001 50001)" = admin ] || fail "an admin of the list is none"
[ "$(role 50002 50002)" = operator ] || fail "an operator of the list is none"
[ "$(role 50004 50012)" = operator ] || fail "an operator by group is none"
[ "$(role 50003 50003)" = viewer ] || fail "a viewer of the list is none"
[ "$(role 50004 50004)" = forbidden ] || fail "a stranger has a role"
platter_as 50003 50003 volume list >/dev/null || fail "a viewer cannot list"
for line in 'volume create v --size 1M' 'volume delete v' 'attach v --to device' 'detach att-1' 'job cancel job-1' \
    'pool create p /tmp' "mount v /mnt" "volume resize v 2M" "volume export v /tmp/x --format raw"; do
    # shellcheck disable=SC2086 # a command line, to be split
    [ "$(status_of platter_as 50003 50003 $line)" = 8 ] || fail "a viewer was allowed: $line"
done
mkdir -m 0755 "$TMP/pool2"
platter_as 50001 50001 pool create p2 "$TMP/pool2" -o name | grep -qx p2 || fail "an admin cannot make a pool"
stop_platterd
