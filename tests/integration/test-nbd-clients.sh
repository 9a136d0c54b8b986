#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The NBD export and the clients that people use: libnbd's tools, qemu's tools, fio.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/exports.sh"
requires command -v nbdinfo
requires command -v nbdcopy
requires command -v qemu-img
requires command -v qemu-io
requires command -v fio

truncate -s 256M "$TMP/image.raw"
nbd_start --image "raw:$TMP/image.raw" --queues 2

info=$(nbdinfo --json "$NBD_URI")
for flag in can_multi_conn can_fua can_flush can_trim can_zero can_fast_zero can_df can_cache; do
    grep -q "\"$flag\": true" <<<"$info" || fail "nbdinfo does not show $flag"
done
grep -q '"export-size": 268435456' <<<"$info" || fail "nbdinfo shows another size"
nbdinfo --list "nbd+unix:///?socket=$NBD_SOCKET" | grep -q 'export="test"' || fail "the export is not listed"
nbdinfo --size "nbd+unix:///test?socket=$NBD_SOCKET" | grep -qx 268435456 || fail "not reached by its name"
refuses 'no export named|no such' nbdinfo --size "nbd+unix:///other?socket=$NBD_SOCKET"

# Copies in and out, several connections at once; holes stay holes.
head -c 40000000 /dev/urandom >"$TMP/source"
truncate -s 120M "$TMP/source"
head -c 20000001 /dev/urandom >>"$TMP/source"
nbdcopy --connections=4 "$TMP/source" "$NBD_URI"
nbdcopy --connections=4 --flush "$NBD_URI" "$TMP/back"
cmp -n "$(stat -c %s "$TMP/source")" "$TMP/source" "$TMP/back" || fail "nbdcopy out differs from what went in"
nbdinfo --map "$NBD_URI" | grep -q 'hole,zero' || fail "no hole in the map"
qemu-img compare -f raw -F raw "$TMP/back" "$NBD_URI" >/dev/null || fail "qemu-img compare"
# qemu looks at the file and through us: the same extents.
qemu-img map -f raw --output=json "$TMP/image.raw" | grep -o '"start": [0-9]*, "length": [0-9]*' >"$TMP/map.file"
qemu-img map -f raw --output=json "$NBD_URI" | grep -o '"start": [0-9]*, "length": [0-9]*' >"$TMP/map.nbd"
cmp "$TMP/map.file" "$TMP/map.nbd" || fail "qemu-img map differs"

qemu_io() {
    local out
    out=$(qemu-io -f raw "$@" "$NBD_URI" 2>&1) || fail "qemu-io $*: $out"
    if grep -Eq 'failed|error' <<<"$out"; then fail "qemu-io $*: $out"; fi
}
qemu_io -c 'write -P 7 1000 30M' -c 'read -P 7 1000 30M' -c 'write -z 4k 1M' -c 'read -P 0 4k 1M' \
    -c 'write -z -u 3M 2M' -c 'read -P 0 3M 2M' -c 'discard 10M 5M' -c 'flush' \
    -c 'write -f -P 9 511 703' -c 'read -P 9 511 703' -c 'read -P 7 20M 1M'
qemu_io -c 'aio_write -P 1 0 1M' -c 'aio_write -P 2 1M 1M' -c 'aio_write -P 3 2M 1M' -c 'aio_flush' \
    -c 'read -P 1 0 1M' -c 'read -P 2 1M 1M' -c 'read -P 3 2M 1M'

# Trimmed and zeroed space goes back to the file system.
before=$(stat -c %b "$TMP/image.raw")
qemu_io -c 'discard 0 128M' -c 'discard 128M 128M'
after=$(stat -c %b "$TMP/image.raw")
((after < before / 10)) || fail "the image keeps $after of $before blocks after a discard of everything"

fio --name=verify --ioengine=nbd --uri="$NBD_URI" --rw=randwrite --bsrange=512-64k --bs_unaligned=0 --iodepth=32 \
    --size=48M --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randseed=7 --output="$TMP/fio" || fail "fio: $(cat "$TMP/fio")"

# A resize: who connects now sees it.
[[ $(export_ask 'resize 402653184') == 'resized 402653184' ]] || fail "resize"
nbdinfo --size "$NBD_URI" | grep -qx 402653184 || fail "a new client does not see the new size"
for _ in {1..100}; do # the last client's end may be on its way
    [[ $(export_ask stats) == *'clients 0' ]] && break
    sleep 0.1
done
[[ $(export_ask stats) == *'clients 0' ]] || fail "clients are left"
export_stop
