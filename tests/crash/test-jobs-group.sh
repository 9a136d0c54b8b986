#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# platterd is killed at every step of a group's snapshots, also within their moment: all of them are there then or none, the volumes
# hold what was written before and after, and their users go on.
. "$(dirname "$0")/jobs.sh"
requires qemu-img --version
requires qemu-io --version
start_platterd
make_pool
POOL=$PLATTERD_DIR/pool-default

holds() { # VOLUME[@SNAPSHOT] PATTERN: the byte that fills its second MiB
    rm -f "$TMP/look.raw"
    platter volume export "$1" "$TMP/look.raw" --format raw -o name >/dev/null
    [ "$(od -A n -t u1 -j 1048576 -N 1 "$TMP/look.raw" | tr -d ' ')" = "$2" ] || fail "$1 does not hold $2"
    rm -f "$TMP/look.raw"
}
sound() { for image in "$POOL"/lay-*.img; do qemu-img check -U -q "$image" || fail "$image is damaged"; done; }
take() { platter snapshot create v@s w@s -o name; }
gone() {
    for volume in v w; do platter volume delete $volume --snapshots --yes >/dev/null 2>&1 || true; done
    settle
}

# Nobody writes: as before or as after, to the file.
made() {
    local byte=11
    for volume in v w; do
        platter volume create $volume --size 8M --filesystem none -o name >/dev/null
        qemu-io -f qcow2 -c "write -P $byte 1M 1M" "$POOL/$(platter volume show $volume -o json | jq -r '.layers[0].id').img" >/dev/null
        byte=$((byte + 1))
    done
}
taken() { holds v 11; holds v@s 11; holds w@s 12; holds w 12; sound; }
UNDO_STEPS="file record switch"
matrix snapshot-group-create "room file image record switch sidecar" made take gone taken

# Under servers. What is told of the group is all or nothing; new tops may stay.
for volume in v w; do platter volume create $volume --size 64M --filesystem ext4 -o name >/dev/null; done
mkdir -p "$TMP/mw"
umount_mw() { umount -q "$TMP/mw" || true; }
cleanup_fn umount_mw
platter mount v "$MNT" >/dev/null
platter mount w "$TMP/mw" >/dev/null
round=0
all_or_none() { # POINT
    local states
    states=$(platter snapshot list -o json | jq -r ".[] | select(.snapshot == \"s$round\") | .state + \" \" + .group" | sort | uniq -c | tr -s ' ')
    [ -z "$states" ] || [[ $states == " 2 available grp-"* ]] || fail "$1: half a group: $states"
    [ -n "$states" ] && outcome=new || outcome=old
}
take_frozen() { platter snapshot create v@s$round w@s$round --freeze -o name; }
take_crash() { platter snapshot create v@s$round w@s$round -o name; }
K=snapshot-group-create
for point in begin record record:after switch switch:frozen switch:held switch:first switch:next switch:after sidecar finish \
    "switch:fail,$K.switch:undo" "switch:fail,$K.record:undo" "switch:fail,$K.finish"; do
    round=$((round + 1))
    for mount in "$MNT" "$TMP/mw"; do
        echo $round >"$mount/mark"
        sync "$mount/mark"
    done
    command=take_frozen
    [ "$point" != switch:first ] || command=take_crash
    crash_at "$K.$point" $command
    all_or_none "$point"
    for mount in "$MNT" "$TMP/mw"; do
        timeout 30 sh -c "echo after$round >'$mount/after' && sync '$mount/after'" || fail "$point: $mount is still held"
    done
    $command >/dev/null 2>&1 || fail "$point: not again"
    all_or_none "$point, again"
    [ $outcome = new ] || fail "$point: nothing was made"
    echo "ok $K.$point"
done
platter unmount "$MNT" >/dev/null
platter unmount "$TMP/mw" >/dev/null
settle
sound
mkdir -p "$MNT"
for volume in v w; do
    platter mount $volume "$MNT" >/dev/null
    [ "$(cat "$MNT/mark" "$MNT/after" | tr '\n' ' ')" = "$round after$round " ] || fail "$volume holds $(cat "$MNT/mark" "$MNT/after")"
    platter unmount "$MNT" >/dev/null
    for i in 1 $round; do
        platter mount $volume@s$i "$MNT" >/dev/null
        [ "$(cat "$MNT/mark")" = $i ] || fail "$volume@s$i holds $(cat "$MNT/mark")"
        platter unmount "$MNT" >/dev/null
    done
done
gone
[ -z "$(find "$POOL" -name 'lay-*')" ] || fail "left over: $(ls "$POOL")"
stop_platterd
