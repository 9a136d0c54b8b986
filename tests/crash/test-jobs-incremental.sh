#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# platterd is killed at every step of an incremental export, and of applying one to a volume.
. "$(dirname "$0")/jobs.sh"
requires qemu-img --version
start_platterd
make_pool
POOL=$PLATTERD_DIR/pool-default

fill() { # PATTERN
    qemu-io -f qcow2 -c "write -P $1 1M 1M" "$POOL/$(platter volume show v -o json | jq -r '.layers[0].id').img" >/dev/null
}
holds() { # VOLUME[@SNAPSHOT] PATTERN: the byte that fills its second MiB
    rm -f "$TMP/look.raw"
    platter volume export "$1" "$TMP/look.raw" --format raw -o name >/dev/null
    [ "$(od -A n -t u1 -j 1048576 -N 1 "$TMP/look.raw" | tr -d ' ')" = "$2" ] || fail "$1 does not hold $2"
    rm -f "$TMP/look.raw"
}
platter volume create v --size 8M --filesystem none -o name >/dev/null
fill 11
platter snapshot create v@s1 -o name >/dev/null
fill 22
platter snapshot create v@s2 -o name >/dev/null
mkdir "$TMP/files"
platter volume export v@s1 "$TMP/files/full" --format qcow2 -o name >/dev/null
platter volume export v@s2 "$TMP/files/delta" --format qcow2 --since s1 -o name >/dev/null

export_delta() { platter volume export v@s2 "$TMP/out.qcow2" --format qcow2 --since s1 -o name; }
exported() { qemu-img info --output json -U "$TMP/out.qcow2" | jq -e '."backing-filename" == "v@s1"' >/dev/null || fail 'the file'; }
removed() { rm "$TMP/out.qcow2"; }
UNDO_STEPS=
matrix volume-export convert true export_delta removed exported

onto() { platter volume import r "$1" --source-format qcow2 --onto -o name; }
replica() {
    platter volume create r --size 8M --filesystem none -o name >/dev/null
    onto "$TMP/files/full" >/dev/null
    settle
}
import_delta() { onto "$TMP/files/delta" && settle; }
imported() {
    holds r 22
    holds r@s2 22
    holds r@s1 11
    for image in "$POOL"/lay-*.img; do qemu-img check -q "$image" || fail "$image is damaged"; done
}
gone() {
    platter volume delete r --snapshots --yes >/dev/null
    settle
}
UNDO_STEPS=image
matrix volume-import-onto "probe files image record" replica import_delta gone imported
stop_platterd
