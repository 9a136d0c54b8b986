#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# platterd is killed at every step of the jobs on snapshots of raw volumes in a pool that reflinks: what was written
# before and after each is there, whatever state it ends in.
. "$(dirname "$0")/jobs.sh"
. "$(dirname "$0")/../lib/reflink.sh"
requires mkfs.xfs -V
requires qemu-io --version
POOL=$PLATTERD_DIR/pool-default
make_filesystem xfs "$POOL" -m reflink=1 || skip "this kernel mounts no XFS on a loop device"
sharing "$POOL" || skip "XFS does not share blocks here"
start_platterd
make_pool

holds() { # VOLUME[@SNAPSHOT] PATTERN: the byte that fills its second MiB
    rm -f "$TMP/look.raw"
    platter volume export "$1" "$TMP/look.raw" --format raw -o name >/dev/null
    [ "$(od -A n -t u1 -j 1048576 -N 1 "$TMP/look.raw" | tr -d ' ')" = "$2" ] || fail "$1 does not hold $2"
    rm -f "$TMP/look.raw"
}
alone() { # VOLUME: it is one raw file
    [ "$(platter volume show "$1" -o json | jq -r '.layers | map(.format) | join(" ")')" = raw ] || fail "$1 has layers"
}
fill() { # PATTERN
    local top
    top=$POOL/$(platter volume show v -o json | jq -r '.layers[0].id').img
    qemu-io -f raw -c "write -P $1 1M 1M" "$top" >/dev/null
}
made() {
    platter volume create v --size 8M --format raw --filesystem none -o name >/dev/null
    fill 11
}
gone() {
    local volume
    for volume in c v; do platter volume delete "$volume" --snapshots --yes >/dev/null 2>&1 || true; done
    settle
}
take() { platter snapshot create v@s -o name; }
taken() { holds v 11; holds v@s 11; alone v; fill 22; holds v@s 11; }
UNDO_STEPS=switch
matrix snapshot-create "file switch" made take gone taken

snapped() {
    made
    platter snapshot create v@s -o name >/dev/null
    fill 22
}
clone() { platter volume clone v@s c -o name; }
cloned() { holds c 11; holds v 22; holds v@s 11; alone c; }
UNDO_STEPS=record
matrix volume-clone "image record" snapped clone gone cloned

restore() { platter volume restore v@s --yes -o name && { settle || true; }; }
restored() { settle; holds v 11; holds v@s 11; alone v; }
UNDO_STEPS=image
matrix volume-restore "image record" snapped restore gone restored

drop() { platter snapshot delete v@s --yes >/dev/null 2>&1 || ! platter snapshot show v@s >/dev/null 2>&1; }
dropped() { holds v 22; alone v; }
UNDO_STEPS=
matrix snapshot-delete layer snapped drop gone dropped
snapped
crash_at snapshot-delete.drop drop # the file is gone, its row is not
dropped
gone

# Under a server: it goes on, told or not.
mounted() {
    platter volume create v --size 64M --format raw --filesystem ext4 -o name >/dev/null
    platter mount v "$MNT" --via fuse >/dev/null
    echo before >"$MNT/file"
    sync "$MNT/file"
}
take_mounted() { platter snapshot create v@s --freeze -o name; }
check_mounted() {
    echo after >"$MNT/file2" || fail "the file system is still held"
    sync "$MNT/file2"
    platter unmount "$MNT" >/dev/null
    platter mount v@s "$MNT" >/dev/null
    [ "$(ls "$MNT" | grep file)" = file ] && [ "$(cat "$MNT/file")" = before ] || fail "the snapshot: $(ls "$MNT")"
    platter unmount "$MNT" >/dev/null
    platter mount v "$MNT" --via fuse >/dev/null
    [ "$(cat "$MNT/file" "$MNT/file2" | tr '\n' ' ')" = "before after " ] || fail "the file system is not whole"
    alone v
}
gone_mounted() {
    platter unmount "$MNT" >/dev/null
    gone
}
for point in switch switch:frozen switch:after; do
    mounted
    crash_at snapshot-create.$point take_mounted
    platter snapshot show v@s >/dev/null || fail "$point: the snapshot was not made"
    check_mounted
    gone_mounted
    echo "ok snapshot-create.$point, mounted"
done
mounted
crash_at snapshot-create.switch:fail,snapshot-create.switch:undo take_mounted
! platter snapshot show v@s 2>/dev/null || fail "a snapshot that failed is there"
take_mounted >/dev/null
check_mounted
gone_mounted
stop_platterd
