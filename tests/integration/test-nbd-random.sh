#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Random requests by libnbd, with and without structured replies, on both I/O engines.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/exports.sh"
requires /usr/bin/python3 -c 'import nbd'
requires command -v qemu-img

for engine in uring threads; do
    for format in raw qcow2; do
        rm -f "$TMP/image.$format"
        qemu-img create -q -f "$format" "$TMP/image.$format" 128M
        export PLATTER_IO_ENGINE=$engine
        nbd_start --image "$format:$TMP/image.$format" --queues 2
        /usr/bin/python3 "$(dirname "$0")/nbd_random.py" "$NBD_URI" || fail "engine $engine, $format"
        qemu-img convert -f raw -O raw "$NBD_URI" "$TMP/copy"
        export_stop
        qemu-img compare -q -f "$format" -F raw "$TMP/image.$format" "$TMP/copy" || fail "$engine, $format: not as shown"
        [[ $format == raw ]] || qemu-img check -q -f qcow2 "$TMP/image.$format" || fail "qemu-img check"
    done
done
