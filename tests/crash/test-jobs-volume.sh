#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# platterd is killed at every step of create, import, export, resize and delete, and in the middle of undoing.
. "$(dirname "$0")/jobs.sh"
requires qemu-img --version
start_platterd
make_pool

nothing() { :; }
create() { platter volume create v --size 64M -o name; }
delete() { platter volume delete v >/dev/null 2>&1 || true; }
check_v() { qemu-img check -q "$(find "$PLATTERD_DIR"/pool-default -name 'lay-*.img')" || fail "the image is damaged"; }
UNDO_STEPS="file image sidecar"
matrix volume-create "file image sidecar" nothing create delete check_v

qemu-img create -q -f qcow2 "$TMP/base.qcow2" 64M
qemu-io -f qcow2 -c 'write -P 7 1M 3M' "$TMP/base.qcow2" >/dev/null
qemu-img create -q -f qcow2 -F qcow2 -b "$TMP/base.qcow2" "$TMP/top.qcow2"
qemu-io -f qcow2 -c 'write -P 9 2M 64k' "$TMP/top.qcow2" >/dev/null
import() { platter volume import v "$TMP/top.qcow2" --source-format qcow2 --parent "$TMP/base.qcow2:qcow2" -o name; }
check_import() {
    qemu-img compare -q -U -f qcow2 -F qcow2 "$TMP/top.qcow2" "$(find "$PLATTERD_DIR"/pool-default -name 'lay-*.img')" ||
        fail "the import differs"
}
UNDO_STEPS="files copy sidecar"
matrix volume-import "probe files copy verify sidecar" nothing import delete check_import
import_preserved() { import --preserve; }
import() { platter volume import v "$TMP/top.qcow2" --source-format qcow2 --parent "$TMP/base.qcow2:qcow2" -o name "$@"; }
UNDO_STEPS="verify"
matrix volume-import "copy verify" nothing import_preserved delete

made() { import >/dev/null; }
export_v() { platter volume export v "$TMP/out.qcow2" --format qcow2 -o name; }
check_export() { qemu-img compare -q -U -f qcow2 -F qcow2 "$TMP/top.qcow2" "$TMP/out.qcow2" || fail "the export differs"; }
clean_export() { rm -f "$TMP/out.qcow2"; delete; }
UNDO_STEPS="file convert"
matrix volume-export "file convert publish" made export_v clean_export check_export

resize() { platter volume resize v 96M -o name; }
check_size() {
    local record image
    record=$(platter volume show v -o json | jq .size)
    image=$(qemu-img info -U --output json "$(find "$PLATTERD_DIR"/pool-default -name 'lay-*.img')" | jq '."virtual-size"')
    [ "$record" = 100663296 ] && [ "$image" = 100663296 ] || fail "sizes: record $record, image $image"
}
UNDO_STEPS=
matrix volume-resize "image record device sidecar filesystem" made resize delete check_size
# A repair that is interrupted is done after the restart, or not at all: the content stays.
damaged() {
    local image block
    made
    image=$(find "$PLATTERD_DIR"/pool-default -name 'lay-*.img')
    block=$((0x$(od -A n -t x1 -j $((0x$(od -A n -t x1 -j 48 -N 8 "$image" | tr -d ' \n'))) -N 8 "$image" | tr -d ' \n')))
    printf '\0\0\0\2' | dd of="$image" bs=1 seek=$((block + 2 * 6)) conv=notrunc status=none
}
repair() { platter volume check v --repair -o name; }
check_repaired() { check_v; check_import; }
matrix volume-check check damaged repair delete check_repaired
delete_v() { platter volume delete v; }
matrix volume-delete "exclusive files sidecar" made delete_v nothing
stop_platterd
