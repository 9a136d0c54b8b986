#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Random requests by libnbd, with and without structured replies, on both I/O engines.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/exports.sh"
requires /usr/bin/python3 -c 'import nbd'

for engine in uring threads; do
    rm -f "$TMP/image.raw"
    truncate -s 128M "$TMP/image.raw"
    export PLATTER_IO_ENGINE=$engine
    nbd_start --image "raw:$TMP/image.raw" --queues 2
    /usr/bin/python3 "$(dirname "$0")/nbd_random.py" "$NBD_URI" || fail "engine $engine"
    export_stop
done
