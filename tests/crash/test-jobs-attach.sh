#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# platterd is killed at every step of attaching, of growing online and of detaching, and in the middle of undoing; and a
# volume that is mounted all the while never notices.
. "$(dirname "$0")/jobs.sh"
requires fio --version
start_platterd
make_pool

# The witness: writes and verifies as long as its file is there; ends with fio's own verdict.
mkdir "$TMP/witness"
platter volume create witness --size 256M -o name >/dev/null
platter mount witness "$TMP/witness" >/dev/null
fio --name=witness --filename="$TMP/witness/data" --size=16M --rw=randwrite --bs=4k --direct=1 --iodepth=4 --ioengine=libaio \
    --verify=crc32c --verify_state_save=0 --time_based --runtime=3600 --rate_iops=400 --loops=1000 >"$TMP/witness.log" 2>&1 &
WITNESS=$!
end_witness() { kill -INT "$WITNESS" 2>/dev/null; wait "$WITNESS" 2>/dev/null; umount -q "$TMP/witness" || true; }
cleanup_fn end_witness

nothing() { :; }
made() { platter volume create v --size 64M --format "$FORMAT" -o name >/dev/null; }
only_attachment() { platter attachment list -o json | jq -r '.[] | select(.volume == "v") | .id'; }
clean() {
    local id
    for id in $(only_attachment); do platter detach "$id" >/dev/null; done
    platter volume delete v >/dev/null
}

FORMAT=qcow2
device() { [ -n "$(only_attachment)" ] || platter attach v --to device -o name; }
UNDO_STEPS="server fuse loop"
matrix attach-device "server fuse loop" made device clean

mount_v() { platter mount v "$MNT"; }
check_mount() {
    echo "$RANDOM" >"$MNT/number" && sync -f "$MNT" && [ -s "$MNT/number" ] || fail "the mount cannot be written"
    [ "$(platter volume show v -o json | jq .formatted)" = true ] || fail "not recorded as formatted"
}
UNDO_STEPS="server fuse loop format mount"
matrix attach-mount "target server fuse loop format fit mount grow" made mount_v clean check_mount
FORMAT=raw
UNDO_STEPS="loop"
matrix attach-mount "loop" made mount_v clean check_mount
FORMAT=qcow2

vm() { [ -n "$(only_attachment)" ] || platter attach v --to vm --export nbd -o name; }
UNDO_STEPS="server listen plug"
matrix attach-vm "server listen plug" made vm clean

mounted() { made; mount_v >/dev/null; echo kept >"$MNT/kept"; }
detach() { platter unmount "$MNT"; }
kept() { mount_v >/dev/null && [ "$(cat "$MNT/kept")" = kept ] || fail "what was written is lost"; detach >/dev/null; }
clean_volume() { platter volume delete v >/dev/null; }
UNDO_STEPS=
matrix detach "unplug unmount loop fuse server socket" mounted detach clean_volume kept

formatted_xfs() { platter volume create v --size 320M --filesystem xfs -o name >/dev/null && mount_v >/dev/null; }
grow() { platter volume resize v 400M -o name; }
check_grown() { [ "$(df --output=size -B1M "$MNT" | tail -n 1)" -gt 300 ] || fail "the file system did not grow"; }
matrix volume-resize "image record device sidecar filesystem" formatted_xfs grow clean check_grown

kill -0 "$WITNESS" || fail "the witness ended: $(cat "$TMP/witness.log")"
kill -INT "$WITNESS"
wait "$WITNESS" || true
grep -Eq 'err= *0' "$TMP/witness.log" || fail "the witness: $(cat "$TMP/witness.log")"
! grep -Eiq 'verify:|error' "$TMP/witness.log" || fail "the witness: $(cat "$TMP/witness.log")"
platter unmount "$TMP/witness" >/dev/null
stop_platterd
