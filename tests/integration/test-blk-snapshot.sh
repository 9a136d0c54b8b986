#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Snapshots of an image that a sandboxed block server exports, under fio --verify by NBD, on each I/O engine. qemu-img judges
# the chain, and is let at the frozen layers while the server runs.
. "$(dirname "$0")/../lib/functions.sh"
PATH=$PLATTER_BUILD/tests:$PATH
requires qemu-img --version
fio --enghelp 2>/dev/null | grep -qw nbd || skip "needs fio with the nbd engine"

bytes=$((64 * 1048576))
uri="nbd+unix:///vol?socket=$TMP/nbd.sock"
seed=$RANDOM
echo "seed $seed"

# new_top NUMBER: an empty layer over the one before.
new_top() {
    qemu-img create -q -f qcow2 -b "$TMP/layer-$(($1 - 1))" -F "$(format_of $(($1 - 1)))" "$TMP/layer-$1" "$bytes"
}
format_of() { if (($1 == 0)); then echo "$bottom"; else echo qcow2; fi; }
snapshot() { blk-host snapshot "$TMP/s.sock" "layer-$1" "qcow2:$TMP/layer-$1"; }

for engine in uring threads; do
    bottom=$([[ $engine == uring ]] && echo raw || echo qcow2)
    rm -f "$TMP"/layer-* "$TMP"/copy-*
    blk-host create "$bottom:$TMP/layer-0" "$bytes"
    export PLATTER_IO_ENGINE=$engine
    pid=$(blk-host serve "$TMP/s.sock" --export "nbd:vol:$TMP/nbd.sock:2" "$bottom:$TMP/layer-0")
    cleanup_fn kill -9 "$pid"
    (cd "$TMP" && exec fio --name=v --ioengine=nbd --uri="$uri" --size=48M --rw=randwrite --bsrange=512-128k --blockalign=512 \
        --iodepth=16 --verify=crc32c --verify_state_save=0 --verify_fatal=1 --fsync=64 --randseed="$seed" --loops=2 \
        --output-format=terse >"$TMP/fio.log" 2>&1) &
    fio=$!
    cleanup_fn kill -9 "$fio"
    top=0
    while ((top < 5)) || { ((top < 20)) && kill -0 "$fio" 2>/dev/null; }; do
        new_top $((++top))
        pause=$(snapshot "$top")
        [[ $pause =~ ^[0-9]+$ ]] || fail "no pause: $pause"
    done
    wait "$fio" || fail "fio: $(tail -n 5 "$TMP/fio.log")"

    # What is frozen at rest stays what it was, whatever is written above.
    qemu-img convert -f raw -O raw "$uri" "$TMP/copy-$top"
    frozen=$top
    new_top $((++top))
    pause=$(snapshot "$top")
    again=$(blk-host snapshot-again "$TMP/s.sock" "layer-$top" "qcow2:$TMP/layer-$top") || fail "the same snapshot again"
    [[ $again == "$pause" ]] || fail "asked again, it was taken again"
    qemu-io -f raw -c "write -P 170 0 1M" -c "write -z 5M 3M" "$uri" >/dev/null
    qemu-img compare -f raw -F qcow2 "$TMP/copy-$frozen" "$TMP/layer-$frozen" >/dev/null || fail "the frozen layer changed"
    refuses 'lock' qemu-io -f qcow2 -c 'write 0 4k' "$TMP/layer-$frozen"
    refuses 'lock' qemu-io -f qcow2 -r -c 'read 0 4k' "$TMP/layer-$top"

    # Refused, and harmless.
    qemu-img create -q -f qcow2 -b "$TMP/layer-$top" -F qcow2 "$TMP/large" $((2 * bytes))
    refuses 'bytes' blk-host snapshot "$TMP/s.sock" large "qcow2:$TMP/large"
    refuses 'raw image cannot' blk-host snapshot "$TMP/s.sock" raw "raw:$TMP/copy-$frozen"
    qemu-img create -q -f qcow2 -b "$TMP/copy-$frozen" -F raw "$TMP/full" "$bytes"
    qemu-io -f qcow2 -c 'write 0 4k' "$TMP/full" >/dev/null
    refuses 'not empty' blk-host snapshot "$TMP/s.sock" full "qcow2:$TMP/full"
    refuses 'in use' blk-host snapshot "$TMP/s.sock" other "qcow2:$TMP/layer-$top"

    qemu-img convert -f raw -O raw "$uri" "$TMP/copy-$top"
    blk-host stats "$TMP/s.sock" | grep -q '"errors":0' || fail "errors were counted"
    blk-host close "$TMP/s.sock"
    for ((i = 0; i <= top; i++)); do
        [[ $(format_of "$i") == raw ]] || qemu-img check -q -f qcow2 "$TMP/layer-$i" || fail "layer $i is damaged"
    done
    qemu-img compare -f qcow2 -F raw "$TMP/layer-$top" "$TMP/copy-$top" >/dev/null || fail "not as NBD showed it"
    qemu-img compare -f raw -F qcow2 "$TMP/copy-$frozen" "$TMP/layer-$frozen" >/dev/null || fail "the frozen layer changed"

    # No more layers than a server can be given at its start.
    [[ $engine == threads ]] || continue
    new_top $((top + 1))
    empty=$TMP/layer-$((top + 1))
    chain=()
    for ((i = top; i >= 0; i--)); do chain+=("$(format_of "$i"):$TMP/layer-$i"); done
    pid=$(blk-host serve "$TMP/s.sock" "${chain[@]}")
    cleanup_fn kill -9 "$pid"
    cp "$empty" "$TMP/empty"
    while ((top < 247)); do
        cp "$TMP/empty" "$TMP/layer-$((++top))" # the name of the layer below does not matter to the server
        snapshot "$top" >/dev/null
    done
    cp "$TMP/empty" "$TMP/layer-$((++top))"
    refuses 'too-many-layers' snapshot "$top"
    blk-host close "$TMP/s.sock"
done
