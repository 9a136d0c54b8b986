#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The life of snapshots and clones of detached volumes: each is compared with a copy of what the volume was then, through deletions
# in random order, merges, restores, and the deletion of what they came from.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
requires qemu-img --version
requires jq --version
start_platterd
make_pool
POOL=$PLATTERD_DIR/pool-default
seed=${SNAPSHOT_SEED:-$RANDOM}
echo "SNAPSHOT_SEED=$seed"
RANDOM=$seed

# write VOLUME: changes at random places, through the image file while nobody else has it
write() {
    local top i args=()
    top=$POOL/$(platter volume show "$1" -o json | jq -r '.layers[0].id').img
    for ((i = 0; i < 12; i++)); do
        args+=(-c "write -P $((RANDOM % 255 + 1)) $((RANDOM % 8000 * 4096)) $((RANDOM % 30 * 512 + 512))")
        args+=(-c "write -z $((RANDOM % 8000 * 4096)) $((RANDOM % 40 * 4096 + 4096))")
    done
    qemu-io -f "$(platter volume show "$1" -o json | jq -r '.layers[0].format')" "${args[@]}" "$top" >/dev/null
}
keep() { rm -f "$2"; platter volume export "$1" "$2" --format raw -o name >/dev/null; }
same() {
    keep "$1" "$TMP/now.raw"
    cmp -s "$TMP/now.raw" "$2" || fail "$1 is not what it was (${3:-})"
}
sound() {
    local image
    for image in "$POOL"/lay-*.img; do
        [ "$(qemu-img info -U --output json "$image" | jq -r .format)" = qcow2 ] || continue
        qemu-img check -q "$image" || fail "$image is damaged"
    done
}
idle() {
    local id
    for id in $(platter job list -o json | jq -r '.[] | select(.state == "queued" or .state == "running") | .id'); do
        platter job wait "$id" --progress none >/dev/null 2>&1 || true
    done
}
layers() { find "$POOL" -name 'lay-*.img' | wc -l; }

for format in qcow2 raw; do
    platter volume create v --size 32M --format $format --filesystem none -o name >/dev/null
    for i in 1 2 3 4 5; do
        write v
        keep v "$TMP/s$i.raw"
        platter snapshot create "v@s$i" -o name >/dev/null
    done
    write v
    keep v "$TMP/v.raw"
    platter snapshot create v@s3 >/dev/null || fail "the same snapshot again"
    [ "$(platter snapshot list v -o json | jq 'map(.snapshot) | join(" ")')" = '"s1 s2 s3 s4 s5"' ] || fail "list"
    [ "$(platter snapshot show v@s2 -o json | jq -r .consistency)" = detached ] || fail "consistency"
    for i in 1 2 3 4 5; do same "v@s$i" "$TMP/s$i.raw" "$format, all there"; done
    # What qemu reads by the names in the files is the same.
    qemu-img compare -q -U -f qcow2 -F raw "$POOL/$(platter volume show v -o json | jq -r '.layers[0].id').img" "$TMP/v.raw" ||
        fail "qemu reads something else"
    sound

    platter volume clone v@s2 c -o name >/dev/null
    platter volume clone v@s2 c -o name >/dev/null || fail "the same clone again"
    refuses 'another volume' platter volume clone v@s3 c
    platter volume clone v@s4 d --size 40M -o name >/dev/null
    same c "$TMP/s2.raw" clone
    write c
    keep c "$TMP/c.raw"
    keep d "$TMP/d.raw"
    [ "$(stat -c %s "$TMP/d.raw")" = $((40 << 20)) ] || fail "the clone's size"
    cmp -n $((32 << 20)) "$TMP/d.raw" "$TMP/s4.raw" || fail "the larger clone differs"

    platter volume restore v@s3 --yes -o name >/dev/null
    same v "$TMP/s3.raw" restored
    for i in 1 2 3 4 5; do same "v@s$i" "$TMP/s$i.raw" "$format, after restore"; done
    write v
    keep v "$TMP/v.raw"

    # Deleting in random order.
    left="1 2 3 4 5"
    for i in $(shuf -e 1 2 3 4 5 --random-source=<(yes "$seed")); do
        platter snapshot delete "v@s$i" --yes >/dev/null
        refuses 'no snapshot' platter snapshot show "v@s$i"
        left=${left/$i/}
        [ $((RANDOM % 2)) = 0 ] || idle
        for k in $left; do same "v@s$k" "$TMP/s$k.raw" "$format, without s$i"; done
        same v "$TMP/v.raw" "$format, without s$i"
        same c "$TMP/c.raw" "$format, without s$i"
    done
    # Every use interrupts a merge; the last one is followed by the rest of it.
    idle
    sound
    refuses 'not VOLUME@SNAPSHOT|has no snapshot' platter snapshot delete v@none --yes

    # Clones outlive what they came from, and inherit its layers.
    platter snapshot create v@last -o name >/dev/null
    refuses 'has snapshots' platter volume delete v
    platter volume delete v --snapshots --yes >/dev/null
    idle
    same c "$TMP/c.raw" "$format, alone"
    same d "$TMP/d.raw" "$format, alone"
    sound
    platter volume delete c --yes >/dev/null
    idle
    same d "$TMP/d.raw" "$format, last"
    idle
    [ "$(platter volume show d -o json | jq '.layers | length')" = 1 ] || fail "d was not merged: $(platter volume show d -o json)"
    platter volume delete d --yes >/dev/null
    [ "$(layers)" = 0 ] || fail "files are left: $(ls "$POOL")"
done

stop_platterd
