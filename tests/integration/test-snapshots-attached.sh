#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Snapshots of volumes that are in use: under fio --verify, with the file system held still, mounted beside the volume, cloned;
# merges wait for the volume and give way to it.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
requires test -e /dev/fuse
requires fio --version
requires jq --version
[ "$(id -u)" = 0 ] || skip "needs root"
mkdir "$TMP/a" "$TMP/b"
FIO=
take_down() {
    [ -z "$FIO" ] || { kill "$FIO" && wait "$FIO"; } 2>/dev/null || true
    umount -q "$TMP/a" || true
    umount -q "$TMP/b" || true
}
cleanup_fn take_down
start_platterd
make_pool
POOL=$PLATTERD_DIR/pool-default
layers_of() { platter volume show "$1" -o json | jq '.layers | length'; }
idle() {
    local id
    for id in $(platter job list -o json | jq -r '.[] | select(.state == "queued" or .state == "running") | .id'); do
        platter job wait "$id" --progress none >/dev/null 2>&1 || true
    done
}

for filesystem in ext4 xfs; do
    size=128M
    [ $filesystem = ext4 ] || size=512M
    platter volume create v --size $size --filesystem $filesystem -o name >/dev/null
    platter mount v "$TMP/a" >/dev/null
    fio --name=w --directory="$TMP/a" --rw=randwrite --bs=4k --size=8M --ioengine=psync --numjobs=1 --verify=crc32c \
        --verify_fatal=1 --do_verify=1 --loops=3 --output="$TMP/fio.log" &
    FIO=$!
    for i in 1 2 3; do
        echo "$i" >"$TMP/a/mark"
        sync "$TMP/a/mark"
        platter snapshot create "v@f$i" --freeze -o name >/dev/null
        [ "$(platter snapshot show "v@f$i" -o json | jq -r .consistency)" = filesystem ] || fail "f$i is not consistent"
        platter snapshot create "v@c$i" -o name >/dev/null
        [ "$(platter snapshot show "v@c$i" -o json | jq -r .consistency)" = crash ] || fail "c$i"
    done
    wait "$FIO" || fail "fio found: $(cat "$TMP/fio.log")"
    FIO=
    # A frozen file system's snapshot mounts beside the volume, as it was then.
    for i in 1 3; do
        platter mount "v@f$i" "$TMP/b" >/dev/null
        [ "$(cat "$TMP/b/mark")" = "$i" ] || fail "f$i holds $(cat "$TMP/b/mark")"
        ! touch "$TMP/b/new" 2>/dev/null || fail "a snapshot was written to"
        refuses 'in use by attachment' platter snapshot delete "v@f$i" --yes
        refuses 'in use' platter volume delete v --snapshots --yes
        platter unmount "$TMP/b" >/dev/null
    done
    # One taken in full flight is what a power cut leaves: a clone replays its journal.
    platter volume clone v@c2 k -o name >/dev/null
    platter mount k "$TMP/b" >/dev/null
    [ "$(cat "$TMP/b/mark")" = 2 ] || fail "the clone holds $(cat "$TMP/b/mark")"
    echo clone >"$TMP/b/mark"
    platter unmount "$TMP/b" >/dev/null
    [ "$(cat "$TMP/a/mark")" = 3 ] || fail "the clone wrote to the volume"

    # Deleted while attached: merged below the top, the rest once it is detached; mounting again does not wait for it.
    [ "$(layers_of v)" = 7 ] || fail "layers: $(layers_of v)"
    for s in f1 c1 f2 f3 c3; do platter snapshot delete "v@$s" --yes >/dev/null; done
    idle
    [ "$(layers_of v)" = 3 ] || fail "not merged under the server: $(platter volume show v -o json)"
    refuses 'volume.*in use' platter volume restore v@c2 --yes
    platter unmount "$TMP/a" >/dev/null
    platter mount v "$TMP/a" >/dev/null
    [ "$(cat "$TMP/a/mark")" = 3 ] || fail "v holds $(cat "$TMP/a/mark")"
    platter unmount "$TMP/a" >/dev/null
    idle
    [ "$(layers_of v)" = 2 ] || fail "not merged: $(platter volume show v -o json)"
    for image in "$POOL"/lay-*.img; do qemu-img check -q "$image" || fail "$image is damaged"; done
    platter mount v "$TMP/a" >/dev/null
    [ "$(cat "$TMP/a/mark")" = 3 ] || fail "after the merge v holds $(cat "$TMP/a/mark")"
    platter unmount "$TMP/a" >/dev/null
    platter volume restore v@c2 --yes >/dev/null
    platter mount v "$TMP/a" >/dev/null
    [ "$(cat "$TMP/a/mark")" = 2 ] || fail "restored, v holds $(cat "$TMP/a/mark")"
    platter unmount "$TMP/a" >/dev/null
    platter mount k "$TMP/b" >/dev/null
    [ "$(cat "$TMP/b/mark")" = clone ] || fail "the clone holds $(cat "$TMP/b/mark")"
    platter unmount "$TMP/b" >/dev/null
    platter volume delete v --snapshots --yes >/dev/null
    platter volume delete k --yes >/dev/null
    idle
    [ -z "$(find "$POOL" -name 'lay-*')" ] || fail "left over: $(ls "$POOL")"
done

# A raw volume straight under a loop device has nobody who could be told.
platter volume create r --size 64M --format raw --filesystem ext4 -o name >/dev/null
platter mount r "$TMP/a" >/dev/null
refuses 'straight over its file' platter snapshot create r@s
platter unmount "$TMP/a" >/dev/null
platter mount r "$TMP/a" --via fuse >/dev/null
echo one >"$TMP/a/mark"
platter snapshot create r@s --freeze >/dev/null
echo two >"$TMP/a/mark"
platter unmount "$TMP/a" >/dev/null
platter mount r "$TMP/a" >/dev/null
platter mount r@s "$TMP/b" >/dev/null
[ "$(cat "$TMP/a/mark" "$TMP/b/mark" | tr '\n' ' ')" = "two one " ] || fail "raw: $(cat "$TMP/a/mark" "$TMP/b/mark")"
platter unmount "$TMP/b" >/dev/null
platter unmount "$TMP/a" >/dev/null
refuses 'not mounted by platter' platter snapshot create r@t --freeze
stop_platterd
