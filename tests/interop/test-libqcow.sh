#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Volumes that platter creates and fills through a device are the same for qemu-img, qemu-io and libqcow. Nothing is zeroed
# or discarded here: libqcow takes the old data of a cluster with the zero flag for its content.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
requires qemu-img --version
requires qemu-io --version
requires qcowinfo -V
requires qcowmount -V
start_platterd
make_pool
mkdir "$TMP/qcow"

# libqcow NAME IMAGE MODEL: what it reads; it gives up on what it does not know
libqcow() {
    if ! qcowinfo "$2" >"$TMP/info" 2>&1; then
        echo "$1: libqcow does not read this variant: $(head -n 3 "$TMP/info" | tr '\n' ' ')"
        return 0
    fi
    qcowmount "$2" "$TMP/qcow" >"$TMP/info" 2>&1 || { cat "$TMP/info" >&2; fail "$1: qcowmount"; }
    cleanup_fn umount "$TMP/qcow"
    cmp "$TMP/qcow/qcow1" "$3" || fail "$1: libqcow reads other data"
    umount "$TMP/qcow"
    judged=$((judged + 1))
}

judged=0
while read -r name options; do
    # shellcheck disable=SC2086 # several options
    platter volume create "$name" --size 16M --filesystem none $options >/dev/null
    truncate -s 16M "$TMP/model"
    attachment=$(platter attach "$name" --to device -o json)
    device=$(jq -r .device <<<"$attachment")
    # offset and length in KiB, pattern
    while read -r offset length pattern; do
        head -c "$((length * 1024))" /dev/zero | tr '\0' "\\$(printf %o "$pattern")" >"$TMP/part"
        dd if="$TMP/part" of="$device" bs=4k seek="$((offset / 4))" oflag=direct conv=notrunc status=none
        dd if="$TMP/part" of="$TMP/model" bs=4k seek="$((offset / 4))" conv=notrunc status=none
    done <<<$'0 1024 17\n2048 4 18\n2056 60 19\n5120 2048 20\n5200 100 21\n16380 4 22'
    platter detach "$(jq -r .id <<<"$attachment")" >/dev/null
    image=$PLATTERD_DIR/pool-default/$(platter volume show "$name" -o json | jq -r '.layers[0].id').img
    qemu-img check -q -f qcow2 "$image" || fail "$name: qemu-img check"
    qemu-img compare -q -f qcow2 -F raw "$image" "$TMP/model" || fail "$name: qemu-img compare"
    out=$(qemu-io -r -f qcow2 -c 'read -P 17 0 1M' -c 'read -P 0 1M 1M' -c 'read -P 18 2M 4k' -c 'read -P 0 2052k 4k' \
        -c 'read -P 19 2056k 60k' -c 'read -P 20 5M 80k' -c 'read -P 21 5200k 100k' -c 'read -P 20 5300k 1868k' \
        -c 'read -P 0 7M 9212k' -c 'read -P 22 16380k 4k' "$image") || fail "$name: qemu-io: $out"
    if grep -i 'failed' <<<"$out" >&2; then fail "$name: qemu-io"; fi
    libqcow "$name" "$image" "$TMP/model"
    platter volume delete "$name" --yes >/dev/null
    rm "$TMP/model"
done <<'END'
v2 --version 2
v3
c4k --cluster-size 4K
c2m --cluster-size 2M
extended --extended-l2
refcount64 --refcount-bits 64
zstd --compression zstd
END
stop_platterd
[ "$judged" -gt 0 ] || skip "libqcow reads none of these images here; qemu's tools agree"
echo "libqcow read $judged of 7 variants"
