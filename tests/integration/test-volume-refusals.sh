#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What the lifecycle refuses, and that nothing has changed afterwards.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
requires test -e /dev/fuse
requires qemu-img --version
[ "$(id -u)" = 0 ] || skip "needs root"
MNT=$TMP/mnt
mkdir "$MNT" "$TMP/busy"
umount_all() { umount -q "$MNT" "$TMP/busy" || true; }
cleanup_fn umount_all
start_platterd
make_pool

for format in qcow2 raw; do
    platter volume create v --size 64M --format $format -o name >/dev/null
    # Somebody wrote to it as a device: its record says that it was never formatted, but it is not blank.
    id=$(platter attach v --to device -o name)
    device=$(platter attachment show "$id" -o json | jq -r .device)
    printf 'precious' | dd of="$device" bs=1 seek=$((64 * 1048576 - 100)) conv=notrunc status=none
    refuses 'in use' platter volume delete v
    refuses 'in use.*device' platter mount v "$MNT"
    exec 7<"$device"
    refuses 'in use' platter detach "$id"
    exec 7<&-
    platter detach "$id" >/dev/null
    refuses 'not blank' platter mount v "$MNT"
    [ "$(platter volume show v -o json | jq .formatted)" = false ] || fail "formatted"
    [ "$(platter attachment list -o json)" = '[]' ] || fail "an attachment is left"
    platter volume export v "$TMP/$format.raw" --format raw -o name >/dev/null
    [ "$(tail -c 100 "$TMP/$format.raw" | head -c 8)" = precious ] || fail "it was overwritten"
    platter volume delete v >/dev/null
done

platter volume create a --size 64M -o name >/dev/null
platter volume create b --size 64M -o name >/dev/null
mount -t tmpfs none "$TMP/busy"
refuses 'mounted on' platter mount a "$TMP/busy"
refuses 'no such file' platter mount a "$TMP/none"
refuses 'not a directory' platter mount a /etc/passwd
platter mount a "$MNT" >/dev/null
refuses 'target' platter mount b "$MNT"
refuses '--shrink' platter volume resize a 32M
# Somebody works in the mount: nothing is unmounted, and everything goes on.
exec 7>"$MNT/open"
refuses 'in use' platter unmount "$MNT"
echo still >&7
exec 7>&-
platter unmount "$MNT" >/dev/null
refuses 'never formatted' platter mount b "$MNT" --read-only
platter volume create raw-data --size 64M --filesystem none -o name >/dev/null
refuses 'no file system' platter mount raw-data "$MNT"

# qemu's locks, both ways.
id=$(platter attach a --to vm --export nbd -o name)
for image in "$PLATTERD_DIR"/pool-default/lay-*.img; do
    qemu-img info "$image" >/dev/null 2>&1 || locked=$image
done
[ -n "${locked:-}" ] || fail "no image is locked"
platter detach "$id" >/dev/null
coproc QEMU { qemu-io "$locked"; }
qemu_pid=$QEMU_PID
echo 'read 0 512' >&"${QEMU[1]}"
read -r _ <&"${QEMU[0]}"
refuses 'in use|lock' platter attach a --to device
refuses 'in use|lock' platter volume delete a
echo quit >&"${QEMU[1]}"
wait "$qemu_pid" || true
platter mount a "$MNT" >/dev/null
[ "$(cat "$MNT/open")" = still ] || fail "what was written is lost"
platter unmount "$MNT" >/dev/null

# Images.
qemu-img create -q -f qcow2 "$TMP/base.qcow2" 64M
qemu-img create -q -f qcow2 -F qcow2 -b "$TMP/base.qcow2" "$TMP/top.qcow2"
qemu-img create -q -f qcow2 -o data_file="$TMP/data.raw" "$TMP/external.qcow2" 64M
head -c 65536 /dev/urandom >"$TMP/noise"
refuses 'parent' platter volume import x "$TMP/top.qcow2" --source-format qcow2
refuses 'no parent' platter volume import x "$TMP/base.qcow2" --source-format qcow2 --parent "$TMP/base.qcow2:qcow2"
refuses 'another file|data file|unsupported' platter volume import x "$TMP/external.qcow2" --source-format qcow2
refuses '.' platter volume import x "$TMP/noise" --source-format qcow2
refuses '.' platter volume import x "$TMP/none" --source-format raw
refuses 'neither a file' platter volume import x /dev/null --source-format raw
refuses 'exists' platter volume export a "$TMP/noise" --format raw
[ "$(platter volume list -o name | sort | tr '\n' ' ')" = 'a b raw-data ' ] || fail "a refused import left something"
[ "$(find "$PLATTERD_DIR/pool-default" -type f | wc -l)" = 7 ] || fail "files are left in the pool"
[ -z "$(find "$TMP" -maxdepth 1 -name '.platter-*')" ] || fail "a temporary file is left"
stop_platterd
