#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fio's checksums through mounted volumes: both formats, both file systems, and grown while fio runs.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
requires fio --version
requires mkfs.xfs -V
start_platterd
make_pool
cd "$TMP" # fio leaves files where it runs

# verify NAME DIRECTORY [ARGUMENTS...]: random sizes and offsets at depth, then all of it read again
verify() {
    local name=$1 directory=$2
    shift 2
    fio --name="$name" --directory="$directory" --ioengine=io_uring --direct=1 --iodepth=16 --rw=randwrite --bsrange=4k-64k \
        --size=48M --verify=crc32c --verify_state_save=0 --verify_fatal=1 --end_fsync=1 --randrepeat=0 --output="$TMP/$name.log" \
        "$@" || { cat "$TMP/$name.log" >&2; fail "fio $name"; }
    if grep -i 'verify:' "$TMP/$name.log" >&2; then fail "fio $name"; fi
}
may_grow_ext4() { (($(awk '/^CapEff:/ {print "0x" $2}' /proc/self/status) >> 24 & 1)); }
blocks() { stat -f -c '%b' "$1"; }

for format in qcow2 raw; do
    for filesystem in ext4 xfs; do
        name=$format-$filesystem
        mnt=$TMP/mnt-$name
        mkdir "$mnt"
        platter volume create "$name" --size 384M --format "$format" --filesystem "$filesystem" >/dev/null
        platter mount "$name" "$mnt" >/dev/null
        before=$(blocks "$mnt")
        verify "$name" "$mnt" --loops=3 &
        fio=$!
        if [ "$filesystem" = ext4 ] && ! may_grow_ext4; then
            echo "no CAP_SYS_RESOURCE: the kernel refuses to grow a mounted ext4"
            refuses 'CAP_SYS_RESOURCE' platter volume resize "$name" 640M
        else
            platter volume resize "$name" 640M >/dev/null || fail "$name does not grow"
            [ "$(blocks "$mnt")" -gt "$((before * 3 / 2))" ] || fail "$name: the mounted file system has not grown"
        fi
        [ "$(platter volume show "$name" -o json | jq .size)" = $((640 * 1048576)) ] || fail "$name: the volume has not grown"
        wait "$fio" || fail "fio on $name while it grew"
        verify "$name-again" "$mnt" --rw=write --bs=1M --nrfiles=4
        rm "$mnt"/*again*
        # Unmounted and mounted: the same data, from the image.
        (cd "$mnt" && md5sum -- *0* >"$TMP/sums")
        platter unmount "$mnt"
        platter mount "$name" "$mnt" >/dev/null
        (cd "$mnt" && md5sum --quiet -c "$TMP/sums") || fail "$name: other data after a remount"
        platter unmount "$mnt"
        image=$PLATTERD_DIR/pool-default/$(platter volume show "$name" -o json | jq -r '.layers[0].id').img
        [ "$format" = raw ] || qemu-img check -q "$image" || fail "$name: qemu-img check"
        platter volume delete "$name" --yes >/dev/null
    done
done
stop_platterd
