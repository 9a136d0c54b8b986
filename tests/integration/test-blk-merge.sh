#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Frozen layers of an image in use are merged one into the next, under fio --verify by NBD, until one is left below the top.
# What the export shows while nothing is written stays the same; qemu-img judges the result.
. "$(dirname "$0")/../lib/functions.sh"
PATH=$PLATTER_BUILD/tests:$PATH
requires qemu-img --version
fio --enghelp 2>/dev/null | grep -qw nbd || skip "needs fio with the nbd engine"

bytes=$((64 * 1048576))
uri="nbd+unix:///vol?socket=$TMP/nbd.sock"
seed=$RANDOM
echo "seed $seed"
RANDOM=$seed

fill() {
    local commands=() i
    for ((i = 0; i < 25; i++)); do
        commands+=(-c "write -P $((RANDOM % 255 + 1)) $((RANDOM * 2000))  $((RANDOM % 600000 + 1))")
        ((i % 4)) || commands+=(-c "write -z $((RANDOM * 2000)) $((RANDOM % 900000 + 1))")
    done
    qemu-io -f raw "${commands[@]}" "$uri" >/dev/null
}
spec() { echo "$([[ $1 == 0 ]] && echo "$bottom" || echo qcow2):$TMP/layer-$1"; }

for bottom in raw qcow2; do
    rm -f "$TMP"/layer-*
    blk-host create "$bottom:$TMP/layer-0" "$bytes"
    pid=$(blk-host serve "$TMP/s.sock" --export "nbd:vol:$TMP/nbd.sock:2" "$(spec 0)")
    cleanup_fn kill -9 "$pid"
    chain=(0)
    for i in 1 2 3 4; do
        fill
        qemu-img create -q -f qcow2 -b "$TMP/layer-$((i - 1))" -F "$(spec $((i - 1)) | cut -d: -f1)" "$TMP/layer-$i" "$bytes"
        blk-host snapshot "$TMP/s.sock" "$i" "$(spec "$i")" >/dev/null
        chain=("$i" "${chain[@]}")
    done
    qemu-img convert -f raw -O raw "$uri" "$TMP/before.raw"
    # fio writes to the last 16 MiB; the rest must not change.
    (cd "$TMP" && exec fio --name=v --ioengine=nbd --uri="$uri" --offset=48M --size=16M --rw=randwrite --bsrange=512-64k \
        --blockalign=512 --iodepth=8 --verify=crc32c --verify_state_save=0 --verify_fatal=1 --randseed="$seed" --loops=4 \
        --output-format=terse >"$TMP/fio.log" 2>&1) &
    fio=$!
    cleanup_fn kill -9 "$fio"
    # 4 is the top. 3 goes into 2, 2 into 1, 1 into 0.
    while ((${#chain[@]} > 2)); do
        layers=()
        for i in "${chain[@]:1}"; do layers+=("$(spec "$i")"); done
        blk-host commit-shared 0 "${layers[@]}"
        blk-host rebase "$TMP/s.sock" "${layers[@]:1}"
        rm "$TMP/layer-${chain[1]}"
        chain=("${chain[0]}" "${chain[@]:2}")
    done
    wait "$fio" || fail "fio: $(tail -n 5 "$TMP/fio.log")"
    refuses 'layer' blk-host rebase "$TMP/s.sock" "$(spec 0)" "$(spec 0)"
    qemu-img convert -f raw -O raw "$uri" "$TMP/after.raw"
    cmp -n $((48 * 1048576)) "$TMP/before.raw" "$TMP/after.raw" || fail "the image changed by merging"
    blk-host stats "$TMP/s.sock" | grep -q '"errors":0' || fail "errors were counted"
    blk-host close "$TMP/s.sock"
    qemu-img rebase -u -f qcow2 -b "$TMP/layer-0" -F "$bottom" "$TMP/layer-4"
    qemu-img compare -f qcow2 -F raw "$TMP/layer-4" "$TMP/after.raw" >/dev/null || fail "not as NBD showed it"
    qemu-img check -q -f qcow2 "$TMP/layer-4" || fail "the top is damaged"
    [[ $bottom == raw ]] || qemu-img check -q -f qcow2 "$TMP/layer-0" || fail "the lower layer is damaged"
done

# A server that has read nothing yet meets the tables after they were written to: what lies beside the pieces that are merged, in
# the same clusters, is what it was.
for options in extended_l2=on extended_l2=on,cluster_size=2M cluster_size=64k; do
    rm -f "$TMP"/layer-*
    for i in 0 1 2 3; do
        ((i)) && base=(-b "$TMP/layer-$((i - 1))" -F qcow2) || base=()
        ((i < 2)) && o=$options || o=extended_l2=on
        qemu-img create -q -f qcow2 -o "$o" "${base[@]}" "$TMP/layer-$i" "$bytes"
        commands=()
        for ((n = i < 3 ? 0 : 300; n < 300; n++)); do
            commands+=(-c "write -P $((RANDOM % 255 + 1)) $((RANDOM * 2000 / 512 * 512)) $((RANDOM % 12 * 512 + 512))")
            ((n % 9)) || commands+=(-c "write -z -u $((RANDOM * 2000)) $((RANDOM % 90000 + 1))")
        done
        ((i == 3)) || qemu-io -f qcow2 "${commands[@]}" "$TMP/layer-$i" >/dev/null
    done
    qemu-img convert -f qcow2 -O raw "$TMP/layer-3" "$TMP/before.raw"
    pid=$(blk-host serve "$TMP/s.sock" --export "nbd:vol:$TMP/nbd.sock:2" "$(spec 3)" qcow2:"$TMP"/layer-{2,1,0})
    cleanup_fn kill -9 "$pid"
    blk-host commit-shared 0 qcow2:"$TMP"/layer-{2,1,0}
    qemu-img convert -f raw -O raw "$uri" "$TMP/after.raw"
    cmp "$TMP/before.raw" "$TMP/after.raw" || fail "$options: the image changed by merging"
    blk-host rebase "$TMP/s.sock" qcow2:"$TMP"/layer-{1,0}
    qemu-img convert -f raw -O raw "$uri" "$TMP/after.raw"
    cmp "$TMP/before.raw" "$TMP/after.raw" || fail "$options: not as the merged layer has it"
    blk-host close "$TMP/s.sock"
    qemu-img check -q -f qcow2 "$TMP/layer-1" || fail "$options: the lower layer is damaged"
done
