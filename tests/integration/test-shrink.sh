#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A volume becomes smaller: a file system that was shrunk first stays whole, whatever still needs the end stands in the way.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
requires test -e /dev/fuse
requires qemu-img --version
requires sh -c "command -v resize2fs"
[ "$(id -u)" = 0 ] || skip "needs root"
MNT=$TMP/mnt
mkdir "$MNT"
umount_mnt() { umount -q "$MNT" || true; }
cleanup_fn umount_mnt
start_platterd
make_pool

as_device() {
    local id
    id=$(platter attach "$1" --to device -o name)
    shift
    device=$(platter attachment show "$id" -o json | jq -r .device)
    "$@" >"$TMP/out.log" 2>&1 || fail "$*: $(cat "$TMP/out.log")"
    platter detach "$id" >/dev/null
}
sum() { sha256sum "$MNT/data" | cut -d' ' -f1; }
shrink_fs() { e2fsck -fy "$device"; resize2fs "$device" 40M; }
write_end() { printf 'precious' | dd of="$device" bs=1 seek=$((64 * 1048576 - 100)) conv=notrunc; }

for format in qcow2 raw; do
    platter volume create v --size 64M --format $format --filesystem ext4 -o name >/dev/null
    platter mount v "$MNT" >/dev/null
    head -c 8M /dev/urandom >"$MNT/data"
    before=$(sum)
    refuses 'in use.*mount' platter volume resize v 48M --shrink
    platter unmount "$MNT" >/dev/null
    refuses 'ext4 needs 67108864 bytes' platter volume resize v 48M --shrink
    refuses 'ext4 needs' platter volume resize v 48M --shrink --discard-data
    as_device v shrink_fs
    platter volume resize v 48M --shrink >/dev/null
    [ "$(platter volume show v -o json | jq .size)" = 50331648 ] || fail "the record"
    image=$(find "$PLATTERD_DIR/pool-default" -name 'lay-*.img')
    [ "$(qemu-img info -f $format --output json "$image" | jq '."virtual-size"')" = 50331648 ] || fail "the image"
    [ $format = raw ] || qemu-img check -q "$image" || fail "the image is damaged"
    platter mount v "$MNT" >/dev/null
    [ "$(sum)" = "$before" ] || fail "the file changed"
    platter unmount "$MNT" >/dev/null
    platter volume resize v 64M >/dev/null
    platter mount v "$MNT" >/dev/null
    [ "$(sum)" = "$before" ] || fail "the file changed when it grew again"
    platter unmount "$MNT" >/dev/null
    platter volume delete v >/dev/null

    # Content that nobody knows.
    platter volume create v --size 64M --format $format --filesystem none -o name >/dev/null
    as_device v write_end
    refuses 'data at byte 67108764' platter volume resize v 32M --shrink
    [ "$(platter volume show v -o json | jq .size)" = 67108864 ] || fail "a refused shrink changed the size"
    platter volume resize v 32M --shrink --discard-data >/dev/null
    platter volume resize v 64M >/dev/null
    platter volume export v "$TMP/$format.raw" --format raw >/dev/null
    cmp -n $((64 * 1048576)) "$TMP/$format.raw" /dev/zero || fail "what was cut off came back"
    platter volume delete v >/dev/null
done
stop_platterd
