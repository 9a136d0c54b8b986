#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# platter volume check: a healthy volume, a damaged one, its repair, and who is refused.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
requires qemu-img --version
requires jq --version
requires curl --version
[ "$(id -u)" = 0 ] || skip "needs root"
start_platterd
make_pool

number() { printf '%b' "$(printf '%016x' "$1" | sed 's/../\\x&/g')"; }
at() { echo $((0x$(od -A n -t x1 -j "$2" -N 8 "$1" | tr -d ' \n'))); }
count_of() { jq -r ".$1" <<<"$out"; }
events() { platter event follow --no-follow -o json | jq -r 'select(.kind == "volume.corrupt" or .kind == "volume.repaired") | .kind' | tr '\n' ' '; }

qemu-img create -q -f qcow2 "$TMP/source.qcow2" 64M
qemu-io -c 'write -P 7 1M 3M' -c 'write -P 9 30M 1M' "$TMP/source.qcow2" >/dev/null
platter volume import v "$TMP/source.qcow2" --source-format qcow2 --preserve -o name >/dev/null
image=$(find "$PLATTERD_DIR/pool-default" -name 'lay-*.img')

out=$(platter volume check v -o json)
[ "$(count_of 'leaks + .errors + .repaired')" = 0 ] || fail "a healthy volume: $out"
[ "$(count_of 'layers[0].allocated')" = 64 ] || fail "allocated: $out"
platter volume check v | grep -q ERRORS || fail "no table"
[ "$(platter volume check v -o name)" = v ] || fail "no name"
platter volume check v --repair >/dev/null || fail "nothing to repair"
[ -z "$(events)" ] || fail "events of a healthy volume"
[ "$(platter __complete volume check v --re)" = --repair ] || fail "completion"
platter __complete volume check '' | grep -qx v || fail "completion of the name"

# One count lowered to 0, one leak.
block=$(at "$image" "$(at "$image" 48)")
l2=$(($(at "$image" "$(at "$image" 40)") & 0x00fffffffffffe00))
cluster=$((($(at "$image" $((l2 + 8 * 20))) & 0x00fffffffffffe00) / 65536))
printf '\0\0' | dd of="$image" bs=1 seek=$((block + 2 * cluster)) conv=notrunc status=none
truncate -s +64K "$image"
end=$(($(stat -c %s "$image") / 65536 - 1))
printf '\0\1' | dd of="$image" bs=1 seek=$((block + 2 * end)) conv=notrunc status=none
[ "$(status_of platter volume check v -o json)" = 1 ] || fail "the exit code of a damaged volume"
refuses 'has 2 errors.*--repair' platter volume check v
out=$(platter volume check v -o json 2>/dev/null || true)
[ "$(count_of leaks) $(count_of low_counts) $(count_of copied_flags) $(count_of errors)" = "1 1 1 2" ] || fail "damaged: $out"
out=$(platter volume check v --repair -o json --progress jsonl 2>"$TMP/progress")
[ "$(count_of repaired) $(count_of errors)" = "3 0" ] || fail "repair: $out"
out=$(platter volume check v -o json)
[ "$(count_of 'leaks + .errors')" = 0 ] || fail "after the repair: $out"
qemu-img check -q "$image" || fail "qemu-img check after the repair"
qemu-img compare -q "$image" "$TMP/source.qcow2" || fail "the content has changed"
[ "$(events)" = "volume.corrupt volume.corrupt volume.corrupt volume.repaired " ] || fail "events: $(events)"

# The API, and who is refused.
api_refuses 404 not-found POST /v1/volumes/none/check '{}'
api_refuses 400 invalid POST /v1/volumes/v/check '{"repair": 1}'
api POST '/v1/volumes/v/check?wait=30' '{"repair": true}' | tail -n 1 | grep -qx 200 || fail "the API"
id=$(platter attach v --to vm --export nbd --holder somebody -o name)
refuses 'in use.*somebody' platter volume check v
api_refuses 409 volume-in-use POST /v1/volumes/v/check '{}'
platter detach "$id" >/dev/null

# A header that cannot be used.
number 0 | dd of="$image" bs=1 seek=40 conv=notrunc status=none
[ "$(status_of platter volume check v --repair)" = 7 ] || fail "the exit code of a broken header"
platter event follow --no-follow -o json | tail -n 5 | grep -q volume.corrupt || fail "no event of a broken header"
platter volume create r --size 64M --format raw -o name >/dev/null
out=$(platter volume check r --repair -o json)
[ "$(count_of errors)" = 0 ] || fail "raw: $out"
stop_platterd
