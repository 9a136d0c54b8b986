#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Changed blocks and incremental exports through the API: what changed between snapshots, files of it, a replica kept by them,
# and what is refused.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
requires qemu-img --version
requires jq --version
start_platterd
make_pool
POOL=$PLATTERD_DIR/pool-default
seed=${INCREMENTAL_SEED:-$RANDOM}
echo "INCREMENTAL_SEED=$seed"
RANDOM=$seed

write() { # VOLUME: changes at random places, through the image file while nobody else has it
    local top i args=()
    top=$POOL/$(platter volume show "$1" -o json | jq -r '.layers[0].id').img
    for ((i = 0; i < 10; i++)); do
        args+=(-c "write -P $((RANDOM % 255 + 1)) $((RANDOM % 7000 * 4096)) $((RANDOM % 30 * 512 + 512))")
        args+=(-c "write -z $((RANDOM % 7000 * 4096)) $((RANDOM % 40 * 4096 + 4096))")
    done
    qemu-io -f "$(platter volume show "$1" -o json | jq -r '.layers[0].format')" "${args[@]}" "$top" >/dev/null
}
raw() { rm -f "$2"; platter volume export "$1" "$2" --format raw -o name >/dev/null; }
export_since() { platter volume export "$1" "$3" --format qcow2 ${2:+--since "$2"} -o name >/dev/null; }
onto() { platter volume import "$1" "$2" --source-format qcow2 --onto -o name >/dev/null; }
same() {
    raw "$1" "$TMP/now.raw"
    cmp -s "$TMP/now.raw" "$2" || fail "$1 is not $2"
}
idle() {
    local id
    for id in $(platter job list -o json | jq -r '.[] | select(.state == "queued" or .state == "running") | .id'); do
        platter job wait "$id" --progress none >/dev/null 2>&1 || true
    done
}

platter volume create v --size 32M --filesystem none -o name >/dev/null
for i in 1 2 3; do
    ((i != 3)) || platter volume resize v --size 40M -o name >/dev/null
    write v
    platter snapshot create "v@s$i" -o name >/dev/null
    raw "v@s$i" "$TMP/s$i.raw"
done

# ---- lists: whatever differs is in them, and in nothing else but what was written again
covers() { # SNAPSHOT SINCE OLD NEW
    platter snapshot changed "$1" ${2:+--since "$2"} -o json >"$TMP/ranges"
    python3 - "$TMP/ranges" "$3" "$4" <<'END'
import json, sys
ranges = [json.loads(line) for line in open(sys.argv[1])]
old, new = (open(path, "rb").read() for path in sys.argv[2:])
old += bytes(len(new) - len(old))
end, was = 0, len(open(sys.argv[2], "rb").read())
for r in ranges:
    assert r["offset"] >= end and r["length"] > 0, r
    assert old[end:r["offset"]] == new[end:r["offset"]], f"a change before {r} was not told"
    end = r["offset"] + r["length"]
    assert not r["zero"] or not any(new[r["offset"]:end]), r
    assert end <= len(new)
assert old[end:] == new[end:], "the last change was not told"
assert was in (0, len(new)) or end == len(new), "the new space was not told"
END
}
: >"$TMP/nothing"
covers v@s1 '' "$TMP/nothing" "$TMP/s1.raw"
covers v@s3 '' "$TMP/nothing" "$TMP/s3.raw"
covers v@s2 s1 "$TMP/s1.raw" "$TMP/s2.raw"
covers v@s3 s2 "$TMP/s2.raw" "$TMP/s3.raw"
covers v@s3 v@s1 "$TMP/s1.raw" "$TMP/s3.raw"
[ "$(platter snapshot changed v@s2 --since s2 -o name)" = '' ] || fail 'a snapshot differs from itself'
refuses 'does not stand on' platter snapshot changed v@s1 --since s2
refuses 'no snapshot' platter snapshot changed v@s2 --since none
refuses 'VOLUME@SNAPSHOT' platter snapshot changed v --since s1

# ---- files
export_since v@s1 '' "$TMP/full"
export_since v@s2 s1 "$TMP/s1-s2"
export_since v@s3 s2 "$TMP/s2-s3"
export_since v@s3 s1 "$TMP/s1-s3"
for pair in s1-s2 s1-s3; do
    cp "$TMP/$pair" "$TMP/rebased"
    qemu-img rebase -u -f qcow2 -F qcow2 -b "$TMP/full" "$TMP/rebased"
    qemu-img check -q -f qcow2 "$TMP/rebased" || fail "$pair is damaged"
    qemu-img compare -q -f qcow2 -F raw "$TMP/rebased" "$TMP/${pair#s1-}.raw" || fail "$pair over its base is not the target"
done
refuses 'does not stand on' export_since v@s1 s2 "$TMP/refused"
refuses 'itself' export_since v@s1 s1 "$TMP/refused"
refuses 'VOLUME@SNAPSHOT' export_since v s1 "$TMP/refused"
refuses 'qcow2 only' platter volume export v@s2 "$TMP/refused" --format raw --since s1
[ ! -e "$TMP/refused" ] || fail 'a refused export left a file'

# ---- a replica, step by step, and in one stride
platter volume create r --size 32M --filesystem none -o name >/dev/null
platter volume create stride --size 32M --format raw --filesystem none -o name >/dev/null
onto r "$TMP/full"
same r@s1 "$TMP/s1.raw"
[ "$(platter snapshot show r@s1 -o json | jq -r .origin)" = "$(platter snapshot show v@s1 -o json | jq -r .id)" ] ||
    fail 'the origin is not kept'
refuses 'not the newest' onto r "$TMP/s2-s3"
refuses 'full export' onto r "$TMP/full"
onto r "$TMP/s1-s2"
same r "$TMP/s2.raw"
refuses 'not the newest' onto r "$TMP/s1-s2"
onto r "$TMP/s2-s3"
same r "$TMP/s3.raw"
onto stride "$TMP/full"
onto stride "$TMP/s1-s3"
for i in 1 2 3; do same "r@s$i" "$TMP/s$i.raw"; done
same stride@s3 "$TMP/s3.raw"
covers r@s3 s1 "$TMP/s1.raw" "$TMP/s3.raw"
[ "$(platter volume show r -o json | jq .size)" = $((40 << 20)) ] || fail 'the replica did not grow'

# A deleted snapshot between two others takes nothing with it.
platter snapshot delete v@s2 --yes >/dev/null
idle
covers v@s3 s1 "$TMP/s1.raw" "$TMP/s3.raw"

# ---- refused: nothing changes, nothing is left behind
platter volume create w --size 32M --filesystem none -o name >/dev/null
onto w "$TMP/full"
idle
files() { (cd "$POOL" && find . -name 'lay-*' | sort); }
files >"$TMP/before"
printf '\0\177\377\377\377\377\0\0' >"$TMP/wild"
cp "$TMP/s1-s2" "$TMP/damaged"
dd if="$TMP/wild" of="$TMP/damaged" bs=1 seek=$((3 << 16)) conv=notrunc status=none
refuses 'damaged|qcow2|corrupt' onto w "$TMP/damaged"
head -c 300000 "$TMP/s1-s2" >"$TMP/cut"
refuses 'damaged|qcow2|corrupt' onto w "$TMP/cut"
qemu-img create -q -f qcow2 "$TMP/strange" 32M
refuses 'does not say' onto w "$TMP/strange"
refuses 'qcow2' platter volume import w "$TMP/s1.raw" --source-format raw --onto
refuses 'no such|cannot|exist' onto w "$TMP/missing"
platter volume create small --size 16M --filesystem none -o name >/dev/null
refuses 'has 16777216' onto small "$TMP/full"
platter volume delete small --yes >/dev/null
idle
files | diff "$TMP/before" - || fail 'a refused import left files'
same w "$TMP/s1.raw"

# ---- written since
write w
refuses 'was changed since' onto w "$TMP/s1-s2"
stop_platterd
