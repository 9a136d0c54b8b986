#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A backed image with its parents named by the caller: imported flat and as it is, both read as qemu-img does, and the chain
# that was kept is changed through the exports while its parents stay untouched.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
requires qemu-img --version

start_platterd
make_pool
cd "$TMP"
qemu-img create -q -f raw base.raw 32M
qemu-io -f raw -c 'write -P 1 0 8M' base.raw >/dev/null
qemu-img create -q -f qcow2 -b base.raw -F raw mid.qcow2
qemu-io -c 'write -P 2 4M 8M' mid.qcow2 >/dev/null
qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2
qemu-io -c 'write -P 3 10M 1M' -c 'write -z 1M 1M' top.qcow2 >/dev/null
qemu-img convert -O raw top.qcow2 model.raw
sha256sum base.raw mid.qcow2 top.qcow2 >sources

parents=(--parent "$TMP/mid.qcow2:qcow2" --parent "$TMP/base.raw:raw")
platter volume import flat "$TMP/top.qcow2" --source-format qcow2 "${parents[@]}" >/dev/null
platter volume import kept "$TMP/top.qcow2" --source-format qcow2 --preserve "${parents[@]}" >/dev/null
[ "$(platter volume show flat -o json | jq '.layers | length')" = 1 ] || fail "the flat import has several layers"
[ "$(platter volume show kept -o json | jq '.layers | length')" = 3 ] || fail "the kept chain has not three layers"
for volume in flat kept; do
    platter volume export "$volume" "$TMP/$volume.raw" --format raw >/dev/null
    cmp "$volume.raw" model.raw || fail "$volume reads otherwise than qemu-img"
done

for export in nbd vhost-user-blk; do
    attachment=$(platter attach kept --to vm --export "$export" -o json)
    "$PLATTER_BUILD/tests/mutate" --target "${export/vhost-user-blk/vhost}:$(jq -r .socket <<<"$attachment")" \
        --model model.raw --operations 200 || fail "kept through $export"
    platter detach "$(jq -r .id <<<"$attachment")" >/dev/null
done
platter volume export kept "$TMP/after.raw" --format raw >/dev/null
cmp after.raw model.raw || fail "the chain reads otherwise than its model"
sha256sum --quiet -c sources || fail "a source file changed"
