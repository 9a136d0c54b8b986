#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A sandboxed block server's NBD export under fio --verify, on each I/O engine and format. qemu-img judges.
. "$(dirname "$0")/../lib/functions.sh"
PATH=$PLATTER_BUILD/tests:$PATH
requires qemu-img --version
fio --enghelp 2>/dev/null | grep -qw nbd || skip "needs fio with the nbd engine"

run_fio() {
    fio --name=v --ioengine=nbd --uri="$uri" --size=48M --rw=randwrite --bsrange=512-128k --blockalign=512 --iodepth=16 \
        --verify=crc32c --verify_state_save=0 --verify_fatal=1 --fsync=64 --randseed="$1" \
        --output-format=terse >"$TMP/fio.log" 2>&1 || fail "fio: $(tail -n 5 "$TMP/fio.log")"
}

uri="nbd+unix:///vol?socket=$TMP/nbd.sock"
seed=$RANDOM
echo "seed $seed"
for engine in uring threads; do
    for format in raw qcow2; do
        image=$TMP/$engine.$format
        blk-host create "$format:$image" $((64 * 1048576))
        export PLATTER_IO_ENGINE=$engine
        pid=$(blk-host serve "$TMP/s.sock" --export "nbd:vol:$TMP/nbd.sock:2" "$format:$image")
        cleanup_fn kill -9 "$pid"
        run_fio "$seed"
        qemu-img convert -f raw -O raw "$uri" "$TMP/copy.raw"
        blk-host stats "$TMP/s.sock" | grep -q '"errors":0' || fail "errors were counted"
        blk-host close "$TMP/s.sock"
        [[ $format == raw ]] || qemu-img check -q -f qcow2 "$image" || fail "$image is damaged"
        qemu-img compare -f "$format" -F raw "$image" "$TMP/copy.raw" >/dev/null || fail "$image: not as NBD showed it"
    done
done
