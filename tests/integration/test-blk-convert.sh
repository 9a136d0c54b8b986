#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copies by a worker: equal for qemu-img, as sparse as their source, whatever the formats.
. "$(dirname "$0")/../lib/functions.sh"
PATH=$PLATTER_BUILD/tests:$PATH
requires qemu-img --version

# Data of all sizes at odd places, explicit zeros, holes, an end that is no whole cluster.
source=$TMP/source.raw
truncate -s $((100 * 1048576 + 1536)) "$source"
seed=$RANDOM
echo "seed $seed"
RANDOM=$seed
for ((i = 0; i < 60; i++)); do
    head -c $((RANDOM * 4 + 1)) /dev/urandom |
        dd of="$source" bs=1M conv=notrunc oflag=seek_bytes seek=$((RANDOM * 3100)) status=none
done
dd if=/dev/zero of="$source" bs=1M count=4 seek=40 conv=notrunc status=none
head -c 700 /dev/urandom | dd of="$source" oflag=seek_bytes seek=$((100 * 1048576 + 836)) conv=notrunc status=none

used() { echo $(($(stat -c %b "$1") * 512)); }

check() {
    local format=$1 file=$2
    qemu-img compare -f raw -F "$format" "$source" "$file" >/dev/null || fail "$file differs from its source"
    [[ $format == raw ]] || qemu-img check -q -f "$format" "$file" || fail "$file is damaged"
    # Clusters are rounded up: 64 KiB for each of some 60 pieces, and tables.
    (($(used "$file") <= $(used "$source") + 8 * 1048576)) || fail "$file is not sparse: $(used "$file")"
}

blk-host convert "raw:$TMP/a.raw" "raw:$source" >/dev/null
check raw "$TMP/a.raw"
(($(used "$TMP/a.raw") <= $(used "$source") - 3 * 1048576)) || fail "zeros were written out"

blk-host convert "qcow2:$TMP/b.qcow2" "raw:$source" >/dev/null
check qcow2 "$TMP/b.qcow2"
for options in compat=0.10 cluster_size=512 cluster_size=4096 cluster_size=2M extended_l2=on compression_type=zstd; do
    rm -f "$TMP/q.qcow2" "$TMP/c.raw" "$TMP/c.qcow2"
    qemu-img convert -q -f raw -O qcow2 -o "$options" "$source" "$TMP/q.qcow2"
    blk-host convert "raw:$TMP/c.raw" "qcow2:$TMP/q.qcow2" >/dev/null
    check raw "$TMP/c.raw"
    blk-host convert "qcow2:$TMP/c.qcow2" "qcow2:$TMP/q.qcow2" >/dev/null
    check qcow2 "$TMP/c.qcow2"
done
rm -f "$TMP/q.qcow2" "$TMP/c.raw"
qemu-img convert -q -c -f raw -O qcow2 "$source" "$TMP/q.qcow2"
blk-host convert "raw:$TMP/c.raw" "qcow2:$TMP/q.qcow2" >/dev/null
check raw "$TMP/c.raw"

# A chain whose parent is given, and refused when it is not.
qemu-img create -q -f qcow2 -b "$TMP/b.qcow2" -F qcow2 "$TMP/top.qcow2"
qemu-io -c 'write -P 7 1M 3M' -c 'write -z 20M 64k' "$TMP/top.qcow2" >/dev/null
blk-host convert "raw:$TMP/d.raw" "qcow2:$TMP/top.qcow2" "qcow2:$TMP/b.qcow2" >/dev/null
qemu-img compare -f raw -F qcow2 "$TMP/d.raw" "$TMP/top.qcow2" >/dev/null || fail "the chain was not copied right"
refuses 'backing' blk-host convert "raw:$TMP/e.raw" "qcow2:$TMP/top.qcow2"

# What there is to copy is asked for a window at a time: far-apart data, nothing in flight when an answer comes.
qemu-img create -q -f qcow2 -o cluster_size=4096 "$TMP/wide.qcow2" 24G
for ((i = 0; i < 24; i++)); do qemu-io -c "write -P $((i + 1)) ${i}G 4k" "$TMP/wide.qcow2" >/dev/null; done
for ((i = 0; i < 3; i++)); do
    rm -f "$TMP/wide.raw"
    blk-host convert "raw:$TMP/wide.raw" "qcow2:$TMP/wide.qcow2" >/dev/null
    qemu-img compare -q -f raw -F qcow2 "$TMP/wide.raw" "$TMP/wide.qcow2" || fail "the wide image differs"
done
