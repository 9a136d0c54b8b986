#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Random load on every kind of qcow2 image that stands alone, through several queues, with a tiny table cache;
# the I/O engine alternates; qemu-img judges.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/qcow2-functions.sh"

variant() {
    local name=$1 size=$2 options=$3 load=$4
    qemu-img create -q -f qcow2 -o "$options" "$TMP/$name.qcow2" "$size"
    load "$load" "$TMP/$name.qcow2"
    echo "ok: $name ($options; $load)"
    rm "$TMP/$name.qcow2"
}

all() {
    variant v3 64M compat=1.1 "-t 3 -n 600 -c 1"
    variant v2 32M compat=0.10 "-t 2 -n 600"
    variant unaligned 16M compat=1.1 "-t 3 -n 500 -a 1 -b"
    variant unaligned-direct 16M compat=1.1 "-t 2 -n 300 -a 1"
    variant c512 2M cluster_size=512,compat=1.1 "-t 3 -n 400 -l 65536 -c 1"
    variant c512v2 2M cluster_size=512,compat=0.10 "-t 2 -n 400 -l 65536 -c 1"
    variant c4k 24M cluster_size=4k "-t 3 -n 500 -c 1"
    variant c2m 64M cluster_size=2M "-t 2 -n 400"
    variant subclusters 32M extended_l2=on "-t 3 -n 600 -c 1"
    variant subclusters-16k 16M extended_l2=on,cluster_size=16k "-t 2 -n 500 -a 1 -b -c 1"
    variant subclusters-2m 64M extended_l2=on,cluster_size=2M "-t 2 -n 400"
    variant refcount1 16M refcount_bits=1 "-t 2 -n 300"
    variant refcount64 16M refcount_bits=64 "-t 2 -n 300"
    variant odd-size 10485248 cluster_size=64k "-t 2 -n 400"
    variant odd-size-2m 10485248 cluster_size=2M,extended_l2=on "-t 2 -n 300 -a 1 -b"
    variant lazy 16M lazy_refcounts=on "-t 2 -n 300"
    variant metadata 32M preallocation=metadata "-t 2 -n 400"
    variant falloc 16M preallocation=falloc "-t 2 -n 300"
}

all
