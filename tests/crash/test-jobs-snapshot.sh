#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# platterd is killed at every step of making and deleting snapshots, of clones and restores, and in the midst of merges: what was
# written before and after each is there, whatever state it ends in.
. "$(dirname "$0")/jobs.sh"
requires qemu-img --version
start_platterd
make_pool
POOL=$PLATTERD_DIR/pool-default

# Wait for the merges that a command leaves behind; platterd may die meanwhile.
merged() {
    local id
    for id in $(platter job list -o json 2>/dev/null | jq -r '.[] | select(.state == "queued" or .state == "running") | .id'); do
        platter job wait "$id" --progress none >/dev/null 2>&1 || true
    done
}
holds() { # VOLUME[@SNAPSHOT] PATTERN: the byte that fills its second MiB
    rm -f "$TMP/look.raw"
    platter volume export "$1" "$TMP/look.raw" --format raw -o name >/dev/null
    [ "$(od -A n -t u1 -j 1048576 -N 1 "$TMP/look.raw" | tr -d ' ')" = "$2" ] || fail "$1 does not hold $2"
    rm -f "$TMP/look.raw"
}
fill() { # PATTERN
    qemu-io -f qcow2 -c "write -P $1 1M 1M" "$POOL/$(platter volume show v -o json | jq -r '.layers[0].id').img" >/dev/null
}
made() {
    platter volume create v --size 8M --filesystem none -o name >/dev/null
    fill 11
}
gone() {
    for volume in c v; do platter volume delete "$volume" --snapshots --yes >/dev/null 2>&1 || true; done
    settle
}
sound() { for image in "$POOL"/lay-*.img; do qemu-img check -q "$image" || fail "$image is damaged"; done; }

take() { platter snapshot create v@s -o name; }
taken() { holds v 11; holds v@s 11; sound; }
UNDO_STEPS="file image record"
matrix snapshot-create "file image record switch sidecar" made take gone taken

snapped() {
    made
    platter snapshot create v@s -o name >/dev/null
    fill 22
}
clone() { platter volume clone v@s c -o name; }
cloned() { holds c 11; holds v 22; holds v@s 11; sound; }
UNDO_STEPS="file image sidecar"
matrix volume-clone "file image sidecar" snapped clone gone cloned

restore() { platter volume restore v@s --yes -o name && merged; }
restored() { holds v 11; holds v@s 11; sound; }
UNDO_STEPS="exclusive file image"
matrix volume-restore "exclusive file image record sidecar" snapped restore gone restored

# With what lies between them, three layers become one.
deep() {
    snapped
    platter snapshot create v@t -o name >/dev/null
    fill 33
    platter snapshot delete v@t -o name --yes >/dev/null
    settle
}
drop() {
    platter snapshot delete v@s --yes >/dev/null 2>&1 || ! platter snapshot show v@s >/dev/null 2>&1 || return 1
    merged
}
dropped() { holds v 33; sound; }
UNDO_STEPS=
matrix snapshot-delete sidecar deep drop gone dropped
matrix volume-merge "merge swap sidecar" deep drop gone dropped
# A restore leaves a layer that nothing stands on.
snapped
crash_at volume-merge.drop restore
restored
gone

# Under a server: it goes on, told or not, and what is written meanwhile is in the volume.
mounted() {
    platter volume create v --size 64M --filesystem ext4 -o name >/dev/null
    platter mount v "$MNT" >/dev/null
    echo before >"$MNT/file"
    sync "$MNT/file"
}
take_mounted() { platter snapshot create v@s --freeze -o name; }
check_mounted() {
    echo after >"$MNT/file2" || fail "the file system is still held"
    sync "$MNT/file2"
    platter unmount "$MNT" >/dev/null
    platter mount v "$MNT" >/dev/null
    [ "$(cat "$MNT/file" "$MNT/file2" | tr '\n' ' ')" = "before after " ] || fail "the file system is not whole"
}
gone_mounted() {
    platter unmount "$MNT" >/dev/null
    gone
}
UNDO_STEPS="record"
matrix snapshot-create "file image record switch sidecar" mounted take_mounted gone_mounted check_mounted
mounted
crash_at snapshot-create.switch:frozen take_mounted
check_mounted
platter snapshot show v@s >/dev/null || fail "the snapshot was not made"
gone_mounted
stop_platterd
