#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Random load on overlays: chains of three over raw and qcow2, shorter and longer backing files, compressed clusters and
# internal snapshots below and in the image itself.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/qcow2-functions.sh"
cd "$TMP"

# content FILE SIZE-IN-MIB: a raw file half of random blocks that compress, half of holes.
content() {
    local i
    truncate -s "$2M" "$1"
    for ((i = 0; i < $2; i += 2)); do
        head -c 400k /dev/urandom | base64 -w0 | dd of="$1" bs=64k seek=$((i * 16 + i % 7)) conv=notrunc status=none
    done
    truncate -s "$2M" "$1"
}
# overlay NAME BACKING SIZE OPTIONS
overlay() {
    local format=qcow2
    [[ $2 == *.raw ]] && format=raw
    qemu-img create -q -f qcow2 -b "$2" -F "$format" -o "$4" "$1" "$3"
}

content base.raw 16
overlay over-raw.qcow2 base.raw 16M cluster_size=64k
load "-t 3 -n 500 -c 1" over-raw.qcow2 base.raw
overlay sub-raw.qcow2 base.raw 16M extended_l2=on
load "-t 3 -n 500 -a 1 -b" sub-raw.qcow2 base.raw
echo "ok: over raw"

content short.raw 5
overlay over-short.qcow2 short.raw 16M cluster_size=64k
load "-t 2 -n 500" over-short.qcow2 short.raw
overlay over-short2.qcow2 short.raw 16M compat=0.10
load "-t 2 -n 500 -c 1" over-short2.qcow2 short.raw
overlay over-longer.qcow2 base.raw 10485248 cluster_size=64k
load "-t 2 -n 500" over-longer.qcow2 base.raw
overlay over-longer2.qcow2 base.raw 10485248 extended_l2=on,cluster_size=2M
load "-t 2 -n 500" over-longer2.qcow2 base.raw
echo "ok: shorter and longer backing"

qemu-img convert -O qcow2 -o cluster_size=4k base.raw c1.qcow2
overlay c2.qcow2 c1.qcow2 16M cluster_size=2M
qemu-io -c "write -P 7 1M 300k" -c "write -z 3M 1M" -c "discard 5M 1M" c2.qcow2 >/dev/null
overlay c3.qcow2 c2.qcow2 16M cluster_size=64k,compat=0.10
qemu-io -c "write -P 9 6M 100k" c3.qcow2 >/dev/null
overlay c4.qcow2 c3.qcow2 16M extended_l2=on
load "-t 3 -n 500 -c 1" c4.qcow2 c3.qcow2 c2.qcow2 c1.qcow2
overlay c5.qcow2 c3.qcow2 16M cluster_size=512
load "-t 2 -n 200 -l 65536 -b -a 1" c5.qcow2 c3.qcow2 c2.qcow2 c1.qcow2
echo "ok: chains"

for options in compression_type=zlib compression_type=zstd compression_type=zstd,cluster_size=2M \
    compression_type=zlib,cluster_size=4k compression_type=zlib,extended_l2=on compression_type=zstd,cluster_size=512; do
    qemu-img convert -c -O qcow2 -o "$options" base.raw z.qcow2
    unchanged "" z.qcow2
    overlay z2.qcow2 z.qcow2 16M cluster_size=64k
    load "-t 2 -n 200" z2.qcow2 z.qcow2
    length=; [[ $options == *=512 ]] && length="-l 65536"
    load "-t 3 -n 400 -c 1 $length" z.qcow2
    echo "ok: compressed, $options"
done

for options in cluster_size=64k extended_l2=on,cluster_size=16k refcount_bits=16,compat=0.10; do
    qemu-img convert -O qcow2 -o "$options" base.raw s.qcow2
    qemu-img snapshot -c one s.qcow2
    load "-t 2 -n 200 -c 1" s.qcow2
    qemu-img snapshot -c two s.qcow2
    load "-t 3 -n 400 -a 1 -b" s.qcow2
    for name in one two; do
        qemu-img snapshot -a $name s.qcow2
        if [[ $name == one ]]; then qemu-img compare s.qcow2 base.raw >/dev/null || fail "snapshot one changed"; fi
        qemu-img check s.qcow2 >/dev/null || fail "snapshot $name"
    done
    qemu-img convert -c -O qcow2 -o "$options" base.raw s.qcow2
    qemu-img snapshot -c one s.qcow2
    load "-t 2 -n 300" s.qcow2
    qemu-img snapshot -a one s.qcow2
    qemu-img compare s.qcow2 base.raw >/dev/null || fail "snapshot of compressed changed"
    echo "ok: internal snapshots, $options"
done
