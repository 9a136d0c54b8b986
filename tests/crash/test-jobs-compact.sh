#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# platterd is killed at every step of a compaction, and in the middle of undoing: the old file or the new one, and the content.
. "$(dirname "$0")/jobs.sh"
requires qemu-img --version
start_platterd
make_pool
POOL=$PLATTERD_DIR/pool-default

top() { echo "$POOL/$(platter volume show v -o json | jq -r '.layers[0].id').img"; }
made() {
    platter volume create v --size 16M --filesystem none -o name >/dev/null
    qemu-io -f qcow2 -c 'write -P 7 1M 4M' "$(top)" >/dev/null
    platter snapshot create v@s -o name >/dev/null
    qemu-io -d unmap -f qcow2 -c 'write -P 9 6M 8M' -c 'discard 7M 6M' -c 'write -z 2M 1M' "$(top)" >/dev/null
}
compact() { platter volume compact v -o name; }
byte() { od -A n -t u1 -j "$1" -N 1 "$TMP/look.raw" | tr -d ' '; }
compacted() {
    platter volume export v "$TMP/look.raw" --format raw -o name >/dev/null
    [ "$(byte $((1 << 20))) $(byte $((2 << 20))) $(byte $((4 << 20))) $(byte $((6 << 20))) $(byte $((8 << 20)))" = "7 0 7 9 0" ] ||
        fail "the content has changed"
    rm "$TMP/look.raw"
    for image in "$POOL"/lay-*.img; do qemu-img check -q "$image" || fail "$image is damaged"; done
    [ "$(stat -c %s "$(top)")" -lt $((5 << 20)) ] || fail "it did not shrink"
}
gone() {
    platter volume delete v --snapshots --yes >/dev/null
    settle
}
UNDO_STEPS=copy
matrix volume-compact "copy record sidecar drop" made compact gone compacted
stop_platterd
