#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Servers that are killed, and stopped, under writers that verify: successors on the kept descriptor finish what was
# begun, and nobody sees an error. On a file system, and on the bare device with many requests in flight.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/exports.sh"
requires test "$(id -u)" = 0
requires test -c /dev/fuse
requires losetup --find
requires command -v fio
requires command -v qemu-img

# fio_run NAME ARGUMENTS...: in the background; takeovers go on until it ends.
fio_run() {
    local name=$1 kills=0 how
    shift
    fio --name="$name" --randseed=11 "$@" --output="$TMP/fio.$name" &
    local pid=$!
    cleanup_fn kill "$pid"
    while kill -0 "$pid" 2>/dev/null; do
        sleep "0.$(printf '%03d' $((RANDOM % 300)))"
        how=$((RANDOM % 4))
        if ((how == 0)); then
            [[ $(export_ask stop) == stopped ]] || fail "a clean stop under load"
            [[ $(export_ask start) == ready ]] || fail "a successor after a stop"
        else
            [[ $(export_ask kill) == ready ]] || fail "a successor after a kill"
        fi
        kills=$((kills + 1))
    done
    wait "$pid" || fail "$name: $(cat "$TMP/fio.$name")"
    echo "$name: $kills takeovers"
    ((kills >= 3)) || fail "$name: over after only $kills takeovers"
}

# begin FORMAT: the export and its loop device, and a mark in the kernel's log.
begin() {
    IMAGE=$TMP/image.$1
    qemu-img create -q -f "$1" "$IMAGE" 256M
    fuse_start --image "$1:$IMAGE"
    loop_attach "$FUSE_FILE"
    MARK=platter-takeover-$1-$$
    echo "$MARK" >/dev/kmsg
}
end() {
    if dmesg | sed -n "/$MARK/,\$p" | grep -E "I/O error.*${LOOP#/dev/}"; then fail "the kernel saw I/O errors"; fi
    loop_detach
    export_stop
}
verify=(--verify=crc32c --verify_fatal=1 --verify_state_save=0)

begin raw
fio_run device "${verify[@]}" --filename="$LOOP" --ioengine=io_uring --direct=1 --rw=randwrite --bs=4k --iodepth=32 \
    --size=64M --rate_iops=6000
# Large requests at a server that has just begun: their data meets the kill.
fio_run large "${verify[@]}" --filename="$LOOP" --ioengine=io_uring --direct=1 --rw=randwrite --bs=128k --iodepth=32 \
    --size=192M --rate_iops=600
mkfs.ext4 -q "$LOOP"
mkdir "$TMP/mnt"
mount "$LOOP" "$TMP/mnt"
cleanup_fn umount "$TMP/mnt"
fio_run files "${verify[@]}" --directory="$TMP/mnt" --ioengine=psync --rw=randwrite --bsrange=512-32k --size=16M \
    --numjobs=2 --fdatasync=16 --rate=8m
umount "$TMP/mnt"
e2fsck -fn "$LOOP" >/dev/null 2>&1 || fail "e2fsck"
end

# qcow2: no errors, and an image that is sound but for leaks. Its tables live in the server's memory between flushes, so
# what was written after the last flush is not asked for here.
begin qcow2
fio_run qcow2 --filename="$LOOP" --ioengine=io_uring --direct=1 --rw=randwrite --bs=4k --iodepth=32 --size=32M \
    --fsync=64 --rate_iops=3000
end
qemu-img check -q -f qcow2 "$IMAGE" >"$TMP/check" 2>&1 || (($? == 3)) || fail "qemu-img check: $(tail -n 5 "$TMP/check")"
