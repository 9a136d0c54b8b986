#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A block server from start to end: sandboxed, found again by its socket, holding qemu's locks for as long as it lives.
. "$(dirname "$0")/../lib/functions.sh"
PATH=$PLATTER_BUILD/tests:$PATH
requires qemu-io --version

# A zombie that init has not reaped yet has ended as well.
runs() { [[ $(status_of "$1" State 2>/dev/null) == [RSDT] ]]; }
status_of() { awk -v name="$2:" '$1 == name {print $2}' "/proc/$1/status"; }

truncate -s 64M "$TMP/disk.img"
pid=$(blk-host serve "$TMP/s.sock" --export "vhost-user-blk:vol:$TMP/vhost.sock:1" "raw:$TMP/disk.img")
cleanup_fn kill -9 "$pid"

if ! grep -q -e __asan_init -e __tsan_init "$PLATTER_BUILD/bin/platter-blk"; then
    [[ $(status_of "$pid" NoNewPrivs) == 1 ]] || fail "it could gain privileges"
    [[ $(status_of "$pid" Seccomp) == 2 ]] || fail "no system call filter"
fi
for set in CapEff CapPrm CapBnd CapInh CapAmb; do
    [[ $(status_of "$pid" "$set") =~ ^0+$ ]] || fail "capabilities left in $set"
done
[[ $(tr '\0' ' ' <"/proc/$pid/cmdline") == "platter-blk serve " ]] || fail "its arguments say more than its mode"
[[ $(stat -c %a "$TMP/s.sock") == 600 ]] || fail "the control socket is open to others"

# Every call below is a new process, as a platterd that was restarted.
blk-host hello "$TMP/s.sock" | grep -q "^pid $pid state open size 67108864 exports 1$" || fail "hello"
blk-host resize "$TMP/s.sock" 134217728
[[ $(stat -c %s "$TMP/disk.img") == 134217728 ]] || fail "the image did not grow"
refuses 'shrink' blk-host resize "$TMP/s.sock" 4096
blk-host flush "$TMP/s.sock"
blk-host stats "$TMP/s.sock" | grep -q '"kind":"vhost-user-blk"' || fail "stats"

refuses 'lock' qemu-io -f raw -c 'write 0 4k' "$TMP/disk.img"
refuses 'in use.*image-in-use' blk-host serve "$TMP/t.sock" "raw:$TMP/disk.img"
[[ ! -e $TMP/t.sock ]] || fail "a refused server left its socket"

blk-host unexport "$TMP/s.sock" vol
refuses "no export 'vol'" blk-host unexport "$TMP/s.sock" vol
blk-host close "$TMP/s.sock"
if runs "$pid"; then fail "the server did not end"; fi
qemu-io -f raw -c 'write 0 4k' "$TMP/disk.img" >/dev/null

# Killed: nobody answers, the lock is gone, a successor takes the same socket.
pid=$(blk-host serve "$TMP/s.sock" "raw:$TMP/disk.img")
cleanup_fn kill -9 "$pid"
kill -9 "$pid"
while runs "$pid"; do sleep 0.05; done
refuses 'connection refused' blk-host hello "$TMP/s.sock"
pid=$(blk-host serve "$TMP/s.sock" --read-only "raw:$TMP/disk.img")
cleanup_fn kill -9 "$pid"
kill -TERM "$pid"
while runs "$pid"; do sleep 0.05; done
