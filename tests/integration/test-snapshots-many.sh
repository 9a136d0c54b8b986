#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Many snapshots of one volume, so that its chain is flattened on the way: all can be listed, read and deleted in any order.
# PLATTER_SNAPSHOTS=1000 for more than a chain may have.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
requires qemu-img --version
requires jq --version
start_platterd
make_pool
POOL=$PLATTERD_DIR/pool-default
many=${PLATTER_SNAPSHOTS:-140}
seed=${SNAPSHOT_SEED:-$RANDOM}
echo "SNAPSHOT_SEED=$seed"
RANDOM=$seed

top() { echo "$POOL/$(platter volume show v -o json | jq -r '.layers[0].id').img"; }
# Snapshot i holds i % 251 + 1 in the block i, and nothing in those after it.
holds() {
    rm -f "$TMP/look.raw"
    platter volume export "v@s$1" "$TMP/look.raw" --format raw -o name >/dev/null
    local got
    got=$(od -A n -t u1 -v -w1 -j 0 -N $((many * 4096)) "$TMP/look.raw" | awk -v n="$1" 'NR % 4096 == 1 {
        i = (NR - 1) / 4096
        if ($1 != (i <= n ? i % 251 + 1 : 0)) { print "block", i, "holds", $1; exit } }')
    [ -z "$got" ] || fail "snapshot $1 of $many: $got"
}

platter volume create v --size 16M --filesystem none -o name >/dev/null
start=$(date +%s%N)
for ((i = 0; i < many; i++)); do
    # A top layer is written to as a guest would, without opening the chain above all the others each time.
    qemu-io -f qcow2 -c "write -P $((i % 251 + 1)) $((i * 4096)) 4096" \
        "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"$(top)\"},\"backing\":null}" >/dev/null 2>&1 ||
        qemu-io -f qcow2 -c "write -P $((i % 251 + 1)) $((i * 4096)) 4096" "$(top)" >/dev/null
    platter snapshot create "v@s$i" -o name >/dev/null
done
echo "$many snapshots: $((($(date +%s%N) - start) / 1000000 / many)) ms each, with the write"
[ "$(platter snapshot list v -o name | wc -l)" = "$many" ] || fail "the list has $(platter snapshot list v -o name | wc -l)"
start=$(date +%s%N)
platter snapshot list v >/dev/null
echo "listed in $((($(date +%s%N) - start) / 1000000)) ms"
for i in 0 $((many / 2)) $((many - 1)) $((RANDOM % many)) $((RANDOM % many)); do holds "$i"; done

mapfile -t order < <(seq 0 $((many - 1)) | shuf --random-source=<(yes "$seed"))
start=$(date +%s%N)
for ((k = 0; k < many - 3; k++)); do
    platter snapshot delete "v@s${order[k]}" --yes >/dev/null
    if ((k % 90 == 40)); then holds "${order[k + 1]}"; fi
done
echo "deleted in $((($(date +%s%N) - start) / 1000000 / many)) ms each"
for ((k = many - 3; k < many; k++)); do holds "${order[k]}"; done
for id in $(platter job list -o json | jq -r '.[] | select(.state == "queued" or .state == "running") | .id'); do
    platter job wait "$id" --progress none >/dev/null 2>&1 || true
done
for ((k = many - 3; k < many; k++)); do holds "${order[k]}"; done
left=$(find "$POOL" -name 'lay-*.img' | wc -l)
((left <= 6)) || fail "$left layers are left for three snapshots"
for image in "$POOL"/lay-*.img; do qemu-img check -q "$image" || fail "$image is damaged"; done
platter volume delete v --snapshots --yes >/dev/null
[ -z "$(find "$POOL" -name 'lay-*')" ] || fail "left over: $(ls "$POOL")"
stop_platterd
