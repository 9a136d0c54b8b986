#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Random use of the FUSE export's file, on both I/O engines; read-only exports refuse to write.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/exports.sh"
requires test "$(id -u)" = 0
requires test -c /dev/fuse

for engine in uring threads; do
    rm -f "$TMP/image.raw"
    truncate -s 32M "$TMP/image.raw"
    export PLATTER_IO_ENGINE=$engine
    fuse_start --image "raw:$TMP/image.raw"
    /usr/bin/python3 "$(dirname "$0")/fuse_random.py" "$FUSE_FILE" || fail "engine $engine"
    sum=$(sha256sum <"$FUSE_FILE")
    export_stop
    [[ $(sha256sum <"$TMP/image.raw") == "$sum" ]] || fail "the image differs from the file"
done

fuse_start --image "raw:$TMP/image.raw" --read-only
[[ $(sha256sum <"$FUSE_FILE") == "$sum" ]] || fail "read-only reads differ"
refuses 'read-only' dd if=/dev/zero of="$FUSE_FILE" bs=4096 count=1 conv=notrunc
export_stop
