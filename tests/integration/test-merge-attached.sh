#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Layers of a volume in use are merged below its top: under fio --verify and a reader that compares, by NBD, with snapshots deleted
# in several orders. What cannot be merged under a server waits; whoever needs the volume ends a merge; qemu's locks are kept.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
requires qemu-img --version
requires jq --version
fio --enghelp 2>/dev/null | grep -qw nbd || skip "needs fio with the nbd engine"
[ "$(id -u)" = 0 ] || skip "needs root"
start_platterd
make_pool
POOL=$PLATTERD_DIR/pool-default
seed=$RANDOM
echo "seed $seed"
RANDOM=$seed

layers_of() { platter volume show v -o json | jq '.layers | length'; }
layer_at() { echo "$POOL/$(platter volume show v -o json | jq -r ".layers[$1].id").img"; } # 0 is the top
idle() { # the merges that are left behind have ended
    local id
    for id in $(platter job list -o json | jq -r '.[] | select(.state == "queued" or .state == "running") | .id'); do
        platter job wait "$id" --progress none >/dev/null 2>&1 || true
    done
}
expect_layers() { idle; [ "$(layers_of)" = "$1" ] || fail "$2: $(layers_of) layers, not $1: $(tail -n 20 "$PLATTERD_DIR/log")"; }
attach() {
    platter attach v --to vm --export nbd -o name >"$TMP/attachment"
    uri="nbd+unix:///v?socket=$(platter attachment show "$(cat "$TMP/attachment")" -o json | jq -r .socket)"
}
detach() { platter detach "$(cat "$TMP/attachment")" -o name >/dev/null; }
snap() { platter snapshot create "v@$1" -o name >/dev/null; }
drop() { platter snapshot delete "v@$1" --yes -o name >/dev/null; }
sound() {
    local image
    platter volume check v >"$TMP/check" || fail "$(cat "$TMP/check")"
    for image in "$POOL"/lay-*.img; do qemu-img check -q "$image" || fail "$image is damaged"; done
}
fill() { # pieces that begin and end within subclusters, in the first 24 MiB
    local commands=() i
    for ((i = 0; i < 40; i++)); do
        commands+=(-c "write -P $((RANDOM % 255 + 1)) $((RANDOM * 700)) $((RANDOM % 200000 + 1))")
        ((i % 4)) || commands+=(-c "write -z $((RANDOM * 700)) $((RANDOM % 300000 + 1))")
    done
    qemu-io -f raw "${commands[@]}" "$uri" >/dev/null
}
watch_it() { # until told: what is not written to never changes
    while [ ! -e "$TMP/stop" ]; do
        qemu-img convert -f raw -O raw "$uri" "$TMP/now.raw" || { echo "cannot read" >"$TMP/changed"; return; }
        cmp -n $((24 * 1048576)) "$TMP/before.raw" "$TMP/now.raw" >"$TMP/differs" || { mv "$TMP/differs" "$TMP/changed"; return; }
    done
}

# The lowest layer's clusters are larger than what the layers above may hold of them, with and without subclusters.
for kind in "" "--cluster-size 2M --extended-l2"; do
    # shellcheck disable=SC2086
    platter volume create v --size 32M --filesystem none $kind -o name >/dev/null
    attach
    for i in 1 2 3 4 5; do
        fill
        snap "s$i"
    done
    platter volume export v@s3 "$TMP/s3.raw" --format raw -o name >/dev/null
    fill
    qemu-img convert -f raw -O raw "$uri" "$TMP/before.raw"
    (cd "$TMP" && exec fio --name=v --ioengine=nbd --uri="$uri" --offset=24M --size=8M --rw=randwrite --bsrange=512-64k \
        --blockalign=512 --iodepth=8 --verify=crc32c --verify_state_save=0 --verify_fatal=1 --randseed="$seed" --loops=4 \
        --output-format=terse >"$TMP/fio.log" 2>&1) &
    fio=$!
    cleanup_fn kill -9 "$fio"
    rm -f "$TMP/stop"
    watch_it &
    watcher=$!
    cleanup_fn kill "$watcher"
    [ "$(layers_of)" = 6 ] || fail "$(layers_of) layers"
    drop s2
    expect_layers 5 "s2"
    snap s6 # the top that was is frozen now
    drop s4
    expect_layers 5 "s4"
    drop s1
    expect_layers 4 "s1"
    platter volume export v@s3 "$TMP/s3-now.raw" --format raw -o name >/dev/null
    cmp "$TMP/s3.raw" "$TMP/s3-now.raw" || fail "s3 changed"
    drop s6
    expect_layers 4 "below the top only its own layers are merged: s6"
    for s in s5 s3; do drop $s; done
    expect_layers 2 "s3"
    : >"$TMP/stop"
    wait "$watcher" || true
    [ ! -e "$TMP/changed" ] || fail "seen by a reader: $(cat "$TMP/changed")"
    wait "$fio" || fail "fio: $(tail -n 5 "$TMP/fio.log")"
    qemu-img convert -f raw -O raw "$uri" "$TMP/after.raw"
    cmp -n $((24 * 1048576)) "$TMP/before.raw" "$TMP/after.raw" || fail "changed by merging"
    detach
    expect_layers 1 "detached"
    platter volume export v "$TMP/end.raw" --format raw -o name >/dev/null
    cmp "$TMP/after.raw" "$TMP/end.raw" || fail "not as NBD showed it"
    sound
    platter volume delete v --snapshots --yes >/dev/null
    rm -f "$TMP"/*.raw
done

# A layer that is to grow waits until nobody reads it.
platter volume create v --size 8M --filesystem none -o name >/dev/null
attach
fill 2>/dev/null || true
snap s1
platter volume resize v 16M >/dev/null
fill 2>/dev/null || true
snap s2
drop s1
expect_layers 3 "of two sizes"
qemu-img convert -f raw -O raw "$uri" "$TMP/after.raw"
detach
expect_layers 2 "grown and detached"

# A program that reads a layer's file keeps it from being merged, and the next merge finds it free.
attach
for i in 3 4; do
    qemu-io -f raw -c "write -P $i 1M 1M" -c "write -P $i 4M 64k" "$uri" >/dev/null
    snap "s$i"
done
mkfifo "$TMP/commands"
qemu-io -f qcow2 -r "$(layer_at 2)" <"$TMP/commands" >"$TMP/qemu.log" 2>&1 &
reader=$!
cleanup_fn kill "$reader"
exec 9>"$TMP/commands"
echo "read 0 4k" >&9
for ((i = 0; i < 300; i++)); do ! grep -q 'read 4096' "$TMP/qemu.log" || break; sleep 0.1; done
[ "$i" -lt 300 ] || fail "qemu-io: $(cat "$TMP/qemu.log")"
drop s3
expect_layers 4 "while qemu-io reads"
platter job list -o json | jq -e '[.[] | select(.kind == "volume-merge")][0].state == "failed"' >/dev/null ||
    fail "$(platter job list)"
exec 9>&-
wait "$reader" || true
snap s5
expect_layers 4 "s3 at the next occasion"
for s in s2 s4 s5; do drop $s; done
expect_layers 2 "s4"
detach
expect_layers 1 "all"
qemu-img convert -f qcow2 -O raw "$(layer_at 0)" "$TMP/end.raw"
qemu-io -f raw -c "write -P 4 1M 1M" -c "write -P 4 4M 64k" "$TMP/after.raw" >/dev/null
cmp "$TMP/after.raw" "$TMP/end.raw" || fail "changed by merging what had grown"
sound
platter volume delete v --snapshots --yes >/dev/null

rm -f "$TMP"/*.raw
# A slow merge: other programs are refused the file that is written to, and detaching ends it at once.
stop_platterd
printf '[platterd]\nmerge_rate = 1\n' >"$PLATTERD_DIR/etc/platterd.conf"
start_platterd
platter volume create v --size 64M --filesystem none -o name >/dev/null
attach
snap s1
qemu-io -f raw -c "write -P 7 0 60M" "$uri" >/dev/null
snap s2
qemu-img convert -f raw -O raw "$uri" "$TMP/before.raw"
drop s1
for ((i = 0; i < 300; i++)); do
    merge=$(platter job list -o json |
        jq -r '.[] | select(.kind == "volume-merge" and .state == "running" and .progress.done > 1000000) | .id')
    [ -z "$merge" ] || break
    sleep 0.1
done
[ -n "$merge" ] || fail "no merge runs: $(platter job list)"
refuses 'lock' qemu-io -f qcow2 -r -c "read 0 4k" "$(layer_at 2)"
refuses 'lock' qemu-io -f qcow2 -c "write 0 4k" "$(layer_at 2)"
state_of() { platter job show "$1" -o json | jq -r .state; }
snap s3
[ "$(state_of "$merge")" = cancelled ] || fail "a snapshot left the merge $(state_of "$merge")"
merge=$(platter job list -o json | jq -r '[.[] | select(.kind == "volume-merge")][0].id') # the one that it left behind
detach
[ "$(state_of "$merge")" = cancelled ] || fail "detaching left the merge $(state_of "$merge")"
idle
[ "$(layers_of)" = 3 ] || fail "$(platter volume show v)"
platter volume export v "$TMP/end.raw" --format raw -o name >/dev/null
cmp "$TMP/before.raw" "$TMP/end.raw" || fail "changed by a merge that was ended"
sound
stop_platterd
