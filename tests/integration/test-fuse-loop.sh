#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The FUSE export below a loop device: a file system on it, verified I/O, trim gives space back, growth arrives.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/exports.sh"
requires test "$(id -u)" = 0
requires test -c /dev/fuse
requires losetup --find
requires command -v mkfs.ext4
requires command -v fio

truncate -s 256M "$TMP/image.raw"
fuse_start --image "raw:$TMP/image.raw"
[[ $(stat -c %s "$FUSE_FILE") == 268435456 ]] || fail "the file has another size"
refuses 'not permitted' truncate -s 1M "$FUSE_FILE"

loop_attach "$FUSE_FILE"
[[ $(losetup --noheadings --output DIO "$LOOP" | tr -d ' ') == 1 ]] || fail "no direct I/O on the loop device"
fio --name=verify --filename="$LOOP" --ioengine=io_uring --direct=1 --rw=randwrite --bsrange=4k-256k --iodepth=32 \
    --size=64M --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randseed=3 --output="$TMP/fio" || fail "fio: $(cat "$TMP/fio")"

mkfs.ext4 -q "$LOOP"
mkdir "$TMP/mnt"
mount "$LOOP" "$TMP/mnt"
cleanup_fn umount "$TMP/mnt"
head -c 30000000 /dev/urandom >"$TMP/source"
for i in 1 2 3; do cp "$TMP/source" "$TMP/mnt/file$i"; done
sync -f "$TMP/mnt"
umount "$TMP/mnt"
mount "$LOOP" "$TMP/mnt"
for i in 1 2 3; do cmp "$TMP/source" "$TMP/mnt/file$i" || fail "file$i"; done

before=$(stat -c %b "$TMP/image.raw")
rm "$TMP/mnt/file1" "$TMP/mnt/file2"
sync -f "$TMP/mnt"
fstrim "$TMP/mnt" || fail "fstrim"
sync -f "$TMP/mnt"
after=$(stat -c %b "$TMP/image.raw")
((after + 50000000 / 512 < before)) || fail "fstrim gave back too little: $before blocks before, $after after"

# Growth, with the device in use.
[[ $(export_ask 'resize 402653184') == 'resized 402653184' ]] || fail "resize"
losetup --set-capacity "$LOOP"
[[ $(blockdev --getsize64 "$LOOP") == 402653184 ]] || fail "the loop device did not grow"
cmp "$TMP/source" "$TMP/mnt/file3" || fail "file3 after the growth"
umount "$TMP/mnt"
e2fsck -fp "$LOOP" >/dev/null || fail "e2fsck before resize2fs"
resize2fs "$LOOP" >/dev/null 2>&1 || fail "resize2fs"
mount "$LOOP" "$TMP/mnt"
head -c 100000000 /dev/urandom >"$TMP/mnt/large"
sum=$(sha256sum <"$TMP/mnt/large")
umount "$TMP/mnt"
mount "$LOOP" "$TMP/mnt"
[[ $(sha256sum <"$TMP/mnt/large") == "$sum" ]] || fail "what was written after the growth"
umount "$TMP/mnt"
e2fsck -fn "$LOOP" >/dev/null 2>&1 || fail "e2fsck"

# Zeroing a device reads back as zeros.
blkdiscard --zeroout "$LOOP"
cmp -n 402653184 "$LOOP" /dev/zero || fail "not zero after zeroout"
loop_detach
export_stop
[[ ! -s $FUSE_FILE ]] || fail "still mounted"
