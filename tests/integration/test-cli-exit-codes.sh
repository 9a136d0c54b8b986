#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The exit codes of docs/commands.md, each provoked.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"

exits() {
    local expected=$1 status
    shift
    status=$(status_of "$@" 2>"$TMP/out")
    [ "$status" = "$expected" ] || fail "'$*' exits with $status, not $expected: $(cat "$TMP/out")"
}
exits 9 platter volume list
grep -q 'cannot reach platterd' "$TMP/out" || fail "unreachable is not explained"
start_platterd
exits 0 platter volume list
exits 2 platter
exits 2 platter volume
exits 2 platter volume frob
exits 2 platter volume create a
exits 2 platter volume create a --size 1X
exits 2 platter volume resize a
exits 2 platter help nothing
exits 3 platter volume show none
exits 3 platter detach att-0
exits 3 platter unmount "$TMP"
grep -q 'no volume of platter is mounted' "$TMP/out" || fail "unmount is not explained"
exits 3 platter pool create p "$TMP/none"
make_pool
exits 0 platter volume create a --size 8M --filesystem none
exits 0 platter volume create a --size 8M --filesystem none
exits 4 platter volume create a --size 9M --filesystem none
exits 5 platter pool delete default
exits 6 platter volume create huge --size 60T
exits 7 platter volume resize a 4M
exits 7 platter volume create 'a b' --size 1M
exits 3 platter volume import b "$TMP/none" --source-format raw
exits 4 platter volume export a /dev/null --format raw
exits 2 platter volume list --timeout never
exits 0 platter volume delete a
exits 3 platter volume delete a
exits 6 sh -c 'platter volume list >/dev/full'

# A second platterd on the same state or socket is refused and takes nothing away.
refuses 'already|another|running|lock' platterd --config "$TMP/platterd/etc/platterd.conf" \
    --state-dir "$TMP/platterd/state" --runtime-dir "$TMP/platterd/run"
refuses 'another platterd' platterd --config "$TMP/platterd/etc/platterd.conf" --state-dir "$TMP/other" \
    --runtime-dir "$TMP/platterd/run"
exits 0 platter version

# A socket that a crash left behind is taken over.
kill_platterd
[ -S "$PLATTER_SOCKET" ] || fail "the crash left no socket"
exits 9 platter version
start_platterd
stop_platterd
[ ! -e "$PLATTER_SOCKET" ] || fail "the stop left a socket"

# Configuration errors name file and line.
printf '[platterd]\nworker = 3\n' >"$TMP/bad.conf"
refuses "bad.conf:2: unknown key 'worker'" platterd --config "$TMP/bad.conf"
