#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# platter volume compact: the file shrinks to what it holds, the content stays, layers below are not touched.
. "$(dirname "$0")/../lib/functions.sh"
cleanup_fn umount "$TMP/small" # registered before platterd's clean-up, so done after it
. "$(dirname "$0")/../lib/platterd.sh"
requires qemu-img --version
requires jq --version
requires curl --version
[ "$(id -u)" = 0 ] || skip "needs root"
start_platterd
make_pool
POOL=$PLATTERD_DIR/pool-default

top() { echo "$POOL/$(platter volume show "$1" -o json | jq -r '.layers[0].id').img"; }
io() { # VOLUME COMMANDS...: on the top layer
    local image args=()
    image=$(top "$1")
    for command in "${@:2}"; do args+=(-c "$command"); done
    qemu-io -d unmap -f "$FORMAT" "${args[@]}" "$image" >/dev/null
}
FORMAT=qcow2
length() { stat -c %s "$(top "$1")"; }
content() { rm -f "$2"; platter volume export "$1" "$2" --format raw -o name >/dev/null; }
# compacted VOLUME: content as before, files clean, nothing left over; its JSON is in $out
compacted() {
    local files old
    files=$(ls "$POOL"/lay-*.img | wc -l)
    old=$(top "$1")
    content "$1" "$TMP/before.raw"
    out=$(platter volume compact "$1" -o json) || fail "compact $1"
    content "$1" "$TMP/after.raw"
    qemu-img compare -q -f raw -F raw "$TMP/before.raw" "$TMP/after.raw" || fail "$1: the content has changed"
    [ "$FORMAT" = raw ] || qemu-img check -q "$(top "$1")" || fail "$1: qemu-img check"
    [ "$(ls "$POOL"/lay-*.img | wc -l)" = "$files" ] || fail "$1: $(ls "$POOL")"
    [ "$(top "$1")" != "$old" ] && [ ! -e "$old" ] || fail "$1: the old layer is still there: $out"
}

# One layer: 24 MiB written, all but 2 given back.
platter volume create v --size 64M --filesystem none -o name >/dev/null
io v 'write -P 7 0 24M' 'discard 1M 22M'
before=$(length v)
[ "$before" -gt $((23 << 20)) ] || fail "not much to shrink: $before"
compacted v
[ "$(length v)" -lt $((4 << 20)) ] || fail "still $(length v) bytes, $before before"
[ "$(jq .length_before <<<"$out")" = "$before" ] && [ "$(jq .length_after <<<"$out")" = "$(length v)" ] || fail "$out"
[ "$(jq '.after <= .before + 2097152' <<<"$out")" = true ] || fail "$out"
platter volume compact v | grep -q '^Compacted v: its top layer.s file is .* long (was .*) and takes ' || fail "no words"
[ "$(platter volume compact v -o name)" = v ] || fail "no name"

# Leaks go, too.
truncate -s +4M "$(top v)"
io v 'write -P 9 40M 1M'
compacted v
[ "$(length v)" -lt $((5 << 20)) ] || fail "leaks stay: $(length v)"

# Over a snapshot: zeros over its data stay zeros, what it holds is not copied, and it is not touched.
platter snapshot create v@one -o name >/dev/null
below=$(sha256sum "$POOL/$(platter volume show v -o json | jq -r '.layers[1].id').img")
content v@one "$TMP/one.raw"
io v 'write -P 3 8M 16M' 'write -z 0 64k' 'write -P 5 128k 4k' 'discard 10M 13M' 'write -z 40M 512k'
before=$(length v)
compacted v
[ "$(length v)" -lt $((5 << 20)) ] || fail "over a snapshot: still $(length v) bytes, $before before"
for zeros in 0:65536 41943040:524288; do
    cmp -s -n "${zeros#*:}" -i "${zeros%:*}:0" "$TMP/after.raw" /dev/zero || fail "$zeros are zeros no more"
done
content v@one "$TMP/again.raw"
cmp "$TMP/one.raw" "$TMP/again.raw" || fail "the snapshot has changed"
sha256sum --quiet -c <<<"$below" || fail "the snapshot's file has changed"
platter snapshot delete v@one --yes -o name >/dev/null
content v "$TMP/merged.raw"
cmp "$TMP/after.raw" "$TMP/merged.raw" || fail "merged afterwards it differs"

# A raw volume; a clone, whose origin keeps its layers.
platter volume create r --size 16M --format raw --filesystem none -o name >/dev/null
FORMAT=raw
io r 'write -P 1 0 1M' 'write -P 0 4M 8M'
compacted r
[ "$(jq '.before - .after >= 8 * 1048576' <<<"$out")" = true ] || fail "raw zeros stay: $out"
FORMAT=qcow2
platter snapshot create v@two -o name >/dev/null
platter volume clone v@two c -o name >/dev/null
io c 'write -P 8 20M 6M' 'discard 21M 5M'
content v "$TMP/origin.raw"
compacted c
content v "$TMP/origin-after.raw"
cmp "$TMP/origin.raw" "$TMP/origin-after.raw" || fail "the clone's origin has changed"

# Compressed clusters would take more when copied: the old file stays.
qemu-img create -q -f raw "$TMP/text.raw" 8M
for ((i = 0; i < 64; i++)); do printf '%0131072d' "$i"; done | dd of="$TMP/text.raw" conv=notrunc status=none
qemu-img convert -c -f raw -O qcow2 "$TMP/text.raw" "$TMP/packed.qcow2"
platter volume import packed "$TMP/packed.qcow2" --source-format qcow2 --preserve -o name >/dev/null
old=$(top packed)
[ "$(platter volume compact packed -o json | jq '.before == .after')" = true ] || fail "packed: other sizes"
[ "$(top packed)" = "$old" ] || fail "packed: its file grew"
qemu-img compare -q "$old" "$TMP/packed.qcow2" || fail "packed: content"

# Who is refused: attached, internal snapshots, preallocated, no room, not there.
id=$(platter attach v --to vm --export nbd -o name)
[ "$(status_of platter volume compact v 2>/dev/null)" = 5 ] || fail "attached"
platter detach "$id" >/dev/null
qemu-img snapshot -c inner "$TMP/packed.qcow2"
platter volume import inner "$TMP/packed.qcow2" --source-format qcow2 --preserve -o name >/dev/null
refuses 'internal snapshots' platter volume compact inner
platter volume create full --size 4M --format raw --preallocate -o name >/dev/null
refuses 'reserved' platter volume compact full
[ "$(status_of platter volume compact none 2>/dev/null)" = 3 ] || fail "not there"
mkdir -p "$TMP/small"
mount -t tmpfs -o size=32M,mode=0755 tmpfs "$TMP/small"
mkdir -m 0755 "$TMP/small/pool"
platter pool create small "$TMP/small/pool" -o name >/dev/null
platter volume create s --size 24M --pool small --filesystem none -o name >/dev/null
POOL=$TMP/small/pool
io s 'write -P 2 0 20M'
old=$(top s)
[ "$(status_of platter volume compact s 2>"$TMP/error")" = 6 ] || fail "no room: $(cat "$TMP/error")"
grep -q 'writes a copy of up to .* first, and its pool has .* left' "$TMP/error" || fail "$(cat "$TMP/error")"
[ "$(top s)" = "$old" ] && [ "$(ls "$POOL"/lay-*.img)" = "$old" ] || fail "refused, but: $(ls "$POOL")"
stop_platterd
