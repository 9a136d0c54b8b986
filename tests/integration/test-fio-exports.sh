#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Checksummed writes through the device, NBD and vhost-user-blk exports, on both formats: fio, and our own front-end where
# fio has none.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
requires fio --version
requires qemu-img --version
start_platterd
make_pool
cd "$TMP" # fio leaves files where it runs

verify() {
    local name=$1
    shift
    fio --name="$name" --iodepth=16 --rw=randwrite --bsrange=4k-128k --size=96M --verify=crc32c --verify_state_save=0 \
        --verify_fatal=1 --randrepeat=0 --loops=2 --output="$TMP/$name.log" "$@" || { cat "$TMP/$name.log" >&2; fail "fio $name"; }
    if grep -i 'verify:' "$TMP/$name.log" >&2; then fail "fio $name"; fi
}

for format in qcow2 raw; do
    platter volume create "$format" --size 128M --format "$format" --filesystem none >/dev/null
    image=$PLATTERD_DIR/pool-default/$(platter volume show "$format" -o json | jq -r '.layers[0].id').img

    attachment=$(platter attach "$format" --to device --via fuse -o json)
    verify "$format-device" --filename="$(jq -r .device <<<"$attachment")" --ioengine=io_uring --direct=1
    platter detach "$(jq -r .id <<<"$attachment")" >/dev/null

    attachment=$(platter attach "$format" --to vm --export nbd -o json)
    if fio --enghelp | grep -qw nbd; then
        verify "$format-nbd" --ioengine=nbd --uri="nbd+unix:///$format?socket=$(jq -r .socket <<<"$attachment")"
    else
        echo "this fio has no nbd engine"
    fi
    platter detach "$(jq -r .id <<<"$attachment")" >/dev/null

    attachment=$(platter attach "$format" --to vm --queues 2 -o json)
    for block in 4096 65536; do
        "$PLATTER_BUILD/tests/vhost-bench" --socket "$(jq -r .socket <<<"$attachment")" --verify --queues 2 --depth 16 \
            --bs "$block" --range $((64 * 1048576)) >"$TMP/vhost.log" 2>&1 || { cat "$TMP/vhost.log" >&2; fail "$format vhost-user"; }
    done
    platter detach "$(jq -r .id <<<"$attachment")" >/dev/null

    [ "$format" = raw ] || qemu-img check -q "$image" || fail "qemu-img check"
    platter volume delete "$format" --yes >/dev/null
done
stop_platterd
