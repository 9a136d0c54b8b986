#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A pool that fills up below thin volumes under load. With the policy to pause, writers wait, events tell of it, they go on
# by themselves once there is space, and nothing is lost; also when platterd is started anew meanwhile, and for both formats.
# Detaching ends a wait. With the policy to fail, writers see ENOSPC, and later writes succeed.
. "$(dirname "$0")/../lib/functions.sh"
cleanup_fn umount "$TMP/small" # registered before platterd's clean-up, so done after it
. "$(dirname "$0")/../lib/platterd.sh"
[ "$(id -u)" = 0 ] || skip "needs root, to mount"
requires qemu-img --version
requires fio --version
requires jq --version
mkdir -p "$TMP/small"
mount -t tmpfs -o size=48M,mode=0755 tmpfs "$TMP/small"
start_platterd
platter pool create small "$TMP/small" >/dev/null

# until SECONDS COMMAND...: it succeeds before that, or the test fails.
until_true() {
    local i
    for ((i = 0; i < $1 * 5; i++)); do
        if "${@:2}" >/dev/null 2>&1; then return 0; fi
        sleep 0.2
    done
    fail "not within $1 s: ${*:2}; $(platter attachment list -o json)"
}
condition_is() { [ "$(platter attachment show "$1" -o json | jq -r .condition)" = "$2" ]; }
volume_condition_is() { [ "$(platter volume show "$1" -o json | jq -r .condition)" = "$2" ]; }
# events KIND VOLUME-ID: how many there are.
events() { platter event follow --no-follow -o json | jq -s --arg k "$1" --arg o "$2" 'map(select(.kind == $k and .object == $o)) | length'; }
had_event() { [ "$(events "$1" "$2")" -gt 0 ]; }
occupy() { dd if=/dev/zero of="$TMP/small/ballast" bs=1M count="$1" status=none; }

for format in qcow2 raw; do
    occupy 24
    platter volume create thin --size 32M --filesystem none --format $format >/dev/null
    id=$(platter volume show thin -o json | jq -r .id)
    [ "$(platter volume show thin -o json | jq -r .on_no_space)" = pause ] || fail "pause is not the default"
    attachment=$(platter attach thin --to device --via fuse -o json)
    aid=$(jq -r .id <<<"$attachment")
    device=$(jq -r .device <<<"$attachment")
    (cd "$TMP" && exec fio --name=fill --filename="$device" --rw=randwrite --bs=64k --size=32M --iodepth=8 --ioengine=libaio \
        --direct=1 --verify=crc32c --do_verify=1 --randseed=7 --output="$TMP/fio.$format") &
    fio=$!
    cleanup_fn kill "$fio"
    until_true 60 condition_is "$aid" no-space
    until_true 30 had_event volume.no-space "$id"
    volume_condition_is thin no-space || fail "the volume does not show it"
    curl -sS --unix-socket "$PLATTER_SOCKET" http://platter/metrics | grep -q 'platter_attachment_conditions{condition="no-space"} 1' ||
        fail "metrics do not show it"
    # Reads and flushes go on.
    timeout 30 dd if="$device" of=/dev/null bs=64k count=4 iflag=direct status=none || fail "$format: reads wait, too"
    # A new platterd sees it, too.
    kill_platterd
    start_platterd
    until_true 30 condition_is "$aid" no-space
    kill -0 "$fio" || fail "$format: fio has ended: $(cat "$TMP/fio.$format")"
    rm "$TMP/small/ballast"
    status=0
    wait "$fio" || status=$?
    [ "$status" = 0 ] || fail "$format: fio: $(cat "$TMP/fio.$format")"
    until_true 30 condition_is "$aid" ok
    until_true 30 had_event volume.space-returned "$id"
    platter detach "$aid" >/dev/null
    image=$TMP/small/$(platter volume show thin -o json | jq -r '.layers[0].id').img
    [ $format = raw ] || qemu-img check -q -f qcow2 "$image" || fail "qemu-img check after the pool was full"
    platter volume delete thin --yes >/dev/null

    # Detaching a volume whose writers wait ends them.
    occupy 40
    platter volume create stuck --size 32M --filesystem none --format $format >/dev/null
    attachment=$(platter attach stuck --to vm --export nbd -o json)
    aid=$(jq -r .id <<<"$attachment")
    socket=$(jq -r .socket <<<"$attachment")
    head -c 32M /dev/urandom >"$TMP/noise"
    nbdcopy --flush "$TMP/noise" "nbd+unix:///stuck?socket=$socket" >"$TMP/nbdcopy" 2>&1 &
    copier=$!
    cleanup_fn kill "$copier"
    until_true 60 condition_is "$aid" no-space
    kill "$copier"
    wait "$copier" || true
    until_true 30 platter detach "$aid"
    platter volume delete stuck --yes >/dev/null
    rm "$TMP/small/ballast"

    # The other policy.
    occupy 40
    platter volume create brittle --size 32M --filesystem none --format $format --on-no-space fail >/dev/null
    id=$(platter volume show brittle -o json | jq -r .id)
    attachment=$(platter attach brittle --to device --via fuse -o json)
    aid=$(jq -r .id <<<"$attachment")
    device=$(jq -r .device <<<"$attachment")
    if dd if="$TMP/noise" of="$device" bs=1M oflag=direct status=none 2>"$TMP/said"; then fail "32 MiB fit into 8"; fi
    until_true 30 had_event volume.no-space "$id"
    rm "$TMP/small/ballast"
    dd if="$TMP/noise" of="$device" bs=1M oflag=direct conv=fsync status=none || fail "$format: no write succeeds once there is space"
    cmp -n $((32 * 1048576)) "$TMP/noise" "$device" || fail "other data than written"
    platter detach "$aid" >/dev/null
    image=$TMP/small/$(platter volume show brittle -o json | jq -r '.layers[0].id').img
    [ $format = raw ] || qemu-img check -q -f qcow2 "$image" || fail "qemu-img check after failed writes"
    platter volume delete brittle --yes >/dev/null
done
pool=$(platter pool show small -o json | jq -r .id)
had_event pool.low-space "$pool" || fail "no event of the full pool"
stop_platterd
