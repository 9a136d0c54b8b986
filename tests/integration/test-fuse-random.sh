#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Random use of the FUSE export's file, on both I/O engines; read-only exports refuse to write.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/exports.sh"
requires test "$(id -u)" = 0
requires test -c /dev/fuse
requires command -v qemu-img

for engine in uring threads; do
    for format in raw qcow2; do
        rm -f "$TMP/image.$format"
        qemu-img create -q -f "$format" "$TMP/image.$format" 32M
        export PLATTER_IO_ENGINE=$engine
        fuse_start --image "$format:$TMP/image.$format"
        /usr/bin/python3 "$(dirname "$0")/fuse_random.py" "$FUSE_FILE" || fail "engine $engine, $format"
        sum=$(sha256sum <"$FUSE_FILE")
        export_stop
        qemu-img convert -f "$format" -O raw "$TMP/image.$format" "$TMP/copy"
        [[ $(sha256sum <"$TMP/copy") == "$sum" ]] || fail "the image differs from the file ($engine, $format)"
        [[ $format == raw ]] || qemu-img check -q -f qcow2 "$TMP/image.$format" || fail "qemu-img check"
    done
done

fuse_start --image "qcow2:$TMP/image.qcow2" --read-only
[[ $(sha256sum <"$FUSE_FILE") == "$sum" ]] || fail "read-only reads differ"
refuses 'read-only' dd if=/dev/zero of="$FUSE_FILE" bs=4096 count=1 conv=notrunc
export_stop
