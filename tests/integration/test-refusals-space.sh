#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# No space: the pool's file system is full, or has promised enough; and callers who may not read what they want imported.
. "$(dirname "$0")/../lib/functions.sh"
cleanup_fn umount "$TMP/small" # registered before platterd's clean-up, so done after it
. "$(dirname "$0")/../lib/platterd.sh"
[ "$(id -u)" = 0 ] || skip "needs root, to mount and to become others"
requires setpriv --version
requires qemu-img --version
chmod 0755 "$TMP"
mkdir -p "$PLATTERD_DIR/etc" "$TMP/small" "$TMP/mnt"
printf '[access]\ngroup = 54001\n' >"$PLATTERD_DIR/etc/platterd.conf"
mount -t tmpfs -o size=24M,mode=0755 tmpfs "$TMP/small"
start_platterd
cp "$PLATTER_BUILD/bin/platter" "$TMP/platter-copy" # where everybody may run it
platter pool create small "$TMP/small" >/dev/null
mkdir "$TMP/tight"
platter pool create tight "$TMP/tight" --overprovision 1 >/dev/null

# refused CODE PATTERN COMMAND...: also leaves volumes and files as they are
state() { platter volume list -o json | jq 'map(del(.used))'; find "$TMP/small" "$TMP/tight" "$TMP/out" | sort; }
refused() {
    local code=$1 pattern=$2 before status=0
    shift 2
    before=$(state)
    "$@" >"$TMP/said" 2>&1 || status=$?
    [ "$status" = "$code" ] || fail "'$*' exits with $status, not $code: $(cat "$TMP/said")"
    grep -Eiq -- "$pattern" "$TMP/said" || fail "'$*' said: $(cat "$TMP/said") (expected /$pattern/)"
    diff <(echo "$before") <(state) >&2 || fail "the refused '$*' changed something"
}
mkdir "$TMP/out"

# ---- no space
head -c 40M /dev/urandom >"$TMP/noise"
refused 6 'space|full' platter volume import big "$TMP/noise" --source-format raw --pool small
refused 6 'space|full' platter volume create big --size 40M --format raw --preallocate --pool small
refused 6 'space|promise|overprovision' platter volume create big --size 60T --pool tight
platter volume create little --size 1M --pool tight --filesystem none >/dev/null
refused 6 'space|promise|overprovision' platter volume resize little 60T

# A file system that is full below a volume in use: the writer sees an error, later writes succeed again, nothing is broken.
platter volume create thin --on-no-space fail --size 64M --pool small --filesystem none >/dev/null
attachment=$(platter attach thin --to device -o json)
device=$(jq -r .device <<<"$attachment")
if dd if="$TMP/noise" of="$device" bs=1M oflag=direct status=none 2>"$TMP/said"; then fail "40 MiB fit into 24"; fi
grep -Eiq 'space|i/o|input/output' "$TMP/said" || fail "dd said: $(cat "$TMP/said")"
blkdiscard "$device" || fail "a full volume cannot be discarded"
# Discarded space is given back a moment later.
for ((i = 0; i < 100; i++)); do
    if dd if="$TMP/noise" of="$device" bs=1M count=4 oflag=direct status=none 2>"$TMP/said"; then break; fi
    sleep 0.1
done
[ "$i" -lt 100 ] || fail "no write succeeds after the discard: $(cat "$TMP/said")"
cmp -n $((4 * 1048576)) "$TMP/noise" "$device" || fail "other data after the discard"
platter detach "$(jq -r .id <<<"$attachment")" >/dev/null
image=$TMP/small/$(platter volume show thin -o json | jq -r '.layers[0].id').img
qemu-img check -q -f qcow2 "$image" || fail "qemu-img check after the file system was full"

# ---- the caller's rights, not platterd's
qemu-img create -q -f qcow2 "$TMP/secret" 1M
chmod 0600 "$TMP/secret"
stranger() { setpriv --reuid 54321 --regid 54321 --groups 54001 "$TMP/platter-copy" "$@"; }
refused 8 'permission denied' stranger volume import stolen "$TMP/secret" --source-format qcow2 --pool small
refused 8 'permission denied' stranger volume export little "$TMP/out/file" --format raw
chmod 0644 "$TMP/secret"
stranger volume import given "$TMP/secret" --source-format qcow2 --pool small >/dev/null || fail "a readable file is refused"
for name in given thin little; do platter volume delete "$name" --yes >/dev/null; done
stop_platterd
