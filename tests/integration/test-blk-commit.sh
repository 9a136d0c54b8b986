#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A worker writes a layer down into the one below: whatever the two are made of, killed anywhere and done again, both the lower
# layer and the chain read as the chain did before. qemu-img judges.
. "$(dirname "$0")/../lib/functions.sh"
PATH=$PLATTER_BUILD/tests:$PATH
requires qemu-img --version

seed=$RANDOM
echo "seed $seed"
RANDOM=$seed
lower_bytes=$((24 * 1048576))

# scatter FILE COUNT: data and zeros of all sizes at odd places.
scatter() {
    local commands=() i
    for ((i = 0; i < $2; i++)); do
        commands+=(-c "write -P $((RANDOM % 255 + 1)) $((RANDOM * 700))  $((RANDOM % 300000 + 1))")
        ((i % 3)) || commands+=(-c "write -z -u $((RANDOM * 600)) $((RANDOM % 500000 + 1))")
    done
    qemu-io -t unsafe -f "$(format_of "$1")" "${commands[@]}" "$1" >/dev/null
}
format_of() { case $1 in *.raw) echo raw ;; *) echo qcow2 ;; esac; }
spec() { echo "$(format_of "$1"):$1"; }

# chain LOWER-OPTIONS UPPER-OPTIONS [UPPER-BYTES]: base <- lower <- upper; LOWER-OPTIONS raw = raw <- upper.
chain() {
    rm -f "$TMP"/{base,lower,upper}*
    upper=$TMP/upper.qcow2
    if [[ $1 == raw ]]; then
        lower=$TMP/lower.raw
        below=()
        truncate -s "$lower_bytes" "$lower"
    else
        lower=$TMP/lower.qcow2
        below=("$TMP/base.raw")
        truncate -s "$lower_bytes" "$TMP/base.raw"
        scatter "$TMP/base.raw" 30
        qemu-img create -q -f qcow2 -o "$1" -b "$TMP/base.raw" -F raw "$lower"
    fi
    scatter "$lower" 20
    qemu-img create -q -f qcow2 -o "$2" -b "$lower" -F "$(format_of "$lower")" "$upper" ${3:+"$3"}
    scatter "$upper" 20
    qemu-img convert -f qcow2 -O raw "$upper" "$TMP/expected.raw"
    layers=()
    for file in "$upper" "$lower" "${below[@]}"; do layers+=("$(spec "$file")"); done
}

judge() {
    qemu-img compare -f qcow2 -F raw "$upper" "$TMP/expected.raw" >/dev/null || fail "$1: the chain changed"
    qemu-img check -q -f qcow2 "$upper" || fail "$1: the upper layer is damaged"
    [[ $lower == *.raw ]] || qemu-img check -q -f qcow2 "$lower" || fail "$1: the lower layer is damaged"
    qemu-img compare -f "$(format_of "$lower")" -F raw "$lower" "$TMP/expected.raw" >/dev/null || fail "$1: the lower layer differs"
}

tried() {
    chain "$@"
    before=$(md5sum <"$upper")
    blk-host commit 0 "${layers[@]}"
    judge "$*"
    [[ $(md5sum <"$upper") == "$before" ]] || fail "$*: the upper layer was written"
}

tried raw cluster_size=65536
blk-host commit 0 "${layers[@]}"
judge "the same again"
tried cluster_size=65536 cluster_size=65536
tried cluster_size=65536 cluster_size=4096
tried cluster_size=512 cluster_size=2M
tried compat=0.10 cluster_size=65536
tried extended_l2=on,cluster_size=131072 extended_l2=on,cluster_size=32768
tried cluster_size=65536 extended_l2=on $((40 * 1048576))
tried raw cluster_size=65536 $((40 * 1048576))

# Compressed clusters above.
chain cluster_size=65536 cluster_size=65536
rm "$upper"
qemu-img convert -q -c -f raw -O qcow2 -B "$lower" -F qcow2 "$TMP/expected.raw" "$upper"
blk-host commit 0 "${layers[@]}"
judge compressed

# Killed at any moment, also in the middle of a slow copy: the chain reads the same; done again, all is there.
for ((i = 0; i < 4; i++)); do
    chain cluster_size=65536 cluster_size=65536
    blk-host commit 8000000 "${layers[@]}" &
    worker=$!
    cleanup_fn kill -9 "$worker"
    sleep 0.$((RANDOM % 4))$((RANDOM % 10))
    kill -TERM "$worker" 2>/dev/null || true # the process that does the work sees it go, and goes
    wait "$worker" 2>/dev/null || true
    qemu-img compare -U -f qcow2 -F raw "$upper" "$TMP/expected.raw" >/dev/null || fail "killed: the chain changed"
    # Its locks tell when it is gone.
    for ((tries = 0; tries < 600; tries++)); do
        blk-host commit 0 "${layers[@]}" 2>"$TMP/commit.log" && break
        grep -q image-in-use "$TMP/commit.log" || fail "$(cat "$TMP/commit.log")"
        sleep 0.1
    done
    qemu-img check -q -f qcow2 "$lower" >/dev/null 2>&1 || (($? == 3)) || fail "killed: the lower layer is damaged"
    qemu-img compare -f qcow2 -F raw "$lower" "$TMP/expected.raw" >/dev/null || fail "killed: the lower layer differs"
done

# Bounded: 8 MiB at 8 MiB a second; the last of them may begin one piece early.
chain cluster_size=65536 cluster_size=65536
qemu-io -t unsafe -f qcow2 -c 'write -P 1 0 8M' "$upper" >/dev/null
start=$(date +%s%N)
blk-host commit $((8 * 1048576)) "${layers[@]}"
(($(date +%s%N) - start > 800000000)) || fail "the bound was not kept"

# Refused.
qemu-img create -q -f qcow2 -b "$lower" -F qcow2 "$TMP/small.qcow2" 1M
refuses 'more than the upper' blk-host commit 0 "qcow2:$TMP/small.qcow2" "${layers[@]:1}"
refuses '2 to 248 layers' blk-host commit 0 "qcow2:$upper"
