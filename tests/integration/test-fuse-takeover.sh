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

truncate -s 256M "$TMP/image.raw"
fuse_start --image "raw:$TMP/image.raw"
loop_attach "$FUSE_FILE"
marker=platter-takeover-$$
echo "$marker" >/dev/kmsg

# fio_run NAME ARGUMENTS...: in the background; takeovers go on until it ends.
fio_run() {
    local name=$1 kills=0 how
    shift
    fio --name="$name" --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randseed=11 "$@" --output="$TMP/fio.$name" &
    local pid=$!
    cleanup_fn kill "$pid"
    while kill -0 "$pid" 2>/dev/null; do
        sleep "0.$((RANDOM % 4 + 1))"
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

fio_run device --filename="$LOOP" --ioengine=io_uring --direct=1 --rw=randwrite --bs=4k --iodepth=32 --size=128M \
    --rate_iops=8000

mkfs.ext4 -q "$LOOP"
mkdir "$TMP/mnt"
mount "$LOOP" "$TMP/mnt"
cleanup_fn umount "$TMP/mnt"
fio_run files --directory="$TMP/mnt" --ioengine=psync --rw=randwrite --bsrange=512-32k --size=24M --numjobs=2 \
    --fdatasync=16 --rate=10m
umount "$TMP/mnt"
e2fsck -fn "$LOOP" >/dev/null 2>&1 || fail "e2fsck"
dmesg | sed -n "/$marker/,\$p" | grep -E "I/O error.*${LOOP#/dev/}" && fail "the kernel saw I/O errors"
loop_detach
export_stop
