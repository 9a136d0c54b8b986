#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Raw volumes on file systems that share blocks between files: snapshots are raw files of their own, also of a volume
# that is written to, and of one moment; clones, restores, deletions in any order; what layers would be needed for is
# refused; elsewhere, and after a move elsewhere, a snapshot is a qcow2 layer.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/reflink.sh"
requires mkfs.xfs -V
requires test -e /dev/fuse
requires qemu-io --version
requires jq --version
POOLS=$TMP/platterd
mkdir "$TMP/platterd" "$TMP/a" "$TMP/b"
make_filesystem xfs "$POOLS/pool-xfs" -m reflink=1 || skip "this kernel mounts no XFS on a loop device"
sharing "$POOLS/pool-xfs" || skip "XFS does not share blocks here"
make_filesystem xfs "$POOLS/pool-plain" -m reflink=0
pools="xfs"
if mkfs.btrfs --version >/dev/null 2>&1 && make_filesystem btrfs "$POOLS/pool-btrfs"; then pools="xfs btrfs"; fi
. "$(dirname "$0")/../lib/platterd.sh"
WRITER=
take_down() {
    [ -z "$WRITER" ] || { kill "$WRITER" && wait "$WRITER"; } 2>/dev/null || true
    umount -q "$TMP/a" || true
    umount -q "$TMP/b" || true
}
cleanup_fn take_down
start_platterd
for pool in $pools plain; do make_pool $pool; done
seed=${REFLINK_SEED:-$RANDOM}
echo "REFLINK_SEED=$seed; pools: $pools"
RANDOM=$seed

top() { echo "$POOL/$(platter volume show "$1" -o json | jq -r '.layers[0].id').img"; }
write() { # VOLUME: changes at random places, through the image file while nobody else has it
    local i args=()
    for ((i = 0; i < 8; i++)); do
        args+=(-c "write -P $((RANDOM % 255 + 1)) $((RANDOM % 7000 * 4096)) $((RANDOM % 30 * 512 + 512))")
    done
    qemu-io -f "$(format "$1")" "${args[@]}" "$(top "$1")" >/dev/null
}
keep() { rm -f "$2"; platter volume export "$1" "$2" --format raw -o name >/dev/null; }
same() {
    keep "$1" "$TMP/now.raw"
    cmp -s "$TMP/now.raw" "$2" || fail "$1 is not what it was (${3:-})"
}
format() { platter volume show "$1" -o json | jq -r '.layers[0].format'; }
depth() { platter volume show "$1" -o json | jq '.layers | length'; }
files() { find "$POOL" -name 'lay-*.img' | wc -l; }
settle() {
    local id
    for id in $(platter job list -o json | jq -r '.[] | select(.state == "queued" or .state == "running") | .id'); do
        platter job wait "$id" --progress none >/dev/null 2>&1 || true
    done
}

# Blocks get ascending numbers, one write after the other, in an order of their own: what was written at any moment is
# known by the highest number alone. A file tells how many writes have ended.
cat >"$TMP/numbers.py" <<'END'
import mmap, os, struct, sys
BLOCK, BLOCKS, STEP = 4096, 4096, 1021
what, path, told = sys.argv[1:4]
if what == "write":
    block = mmap.mmap(-1, BLOCK)
    with open(path, "rb+", buffering=0, opener=lambda p, f: os.open(p, f | os.O_DIRECT)) as device:
        progress = os.open(told, os.O_RDWR | os.O_CREAT, 0o600)
        i = 0
        while True:
            i += 1
            block[:] = struct.pack("<Q", i) * (BLOCK // 8)
            os.pwrite(device.fileno(), block, i * STEP % BLOCKS * BLOCK)
            os.pwrite(progress, struct.pack("<Q", i), 0)
else:
    first, last = int(told), int(sys.argv[4])
    data = open(path, "rb").read(BLOCK * BLOCKS)
    held = [struct.unpack_from("<Q", data, b * BLOCK)[0] for b in range(BLOCKS)]
    moment = max(held)
    assert first <= moment <= last + 1, f"it holds write {moment}, not one of {first} to {last + 1}"
    for i in range(max(1, moment - BLOCKS + 1), moment + 1):
        b = i * STEP % BLOCKS
        assert held[b] == i, f"block {b} holds write {held[b]}, but write {i} was there at the moment of {moment}"
        assert data[b * BLOCK:(b + 1) * BLOCK] == struct.pack("<Q", i) * (BLOCK // 8), f"block {b} is torn"
END
written() { od -A n -t u8 -N 8 "$TMP/told" | tr -d ' '; }

detached() {
    local i k left name
    platter volume create v --pool "$1" --size 32M --format raw --filesystem none -o name >/dev/null
    for i in 1 2 3 4; do
        write v
        keep v "$TMP/s$i.raw"
        platter snapshot create "v@s$i" -o name >/dev/null
    done
    platter snapshot create v@s3 -o name >/dev/null || fail "the same snapshot again"
    write v
    keep v "$TMP/v.raw"
    [ "$(format v) $(depth v) $(files)" = "raw 1 5" ] || fail "not by reflink: $(platter volume show v -o json)"
    for i in 1 2 3 4; do same "v@s$i" "$TMP/s$i.raw" "$1, all there"; done
    [ "$(platter snapshot show v@s1 -o json |
        jq '.used > 0 and .consistency == "detached" and .size == 33554432')" = true ] ||
        fail "show: $(platter snapshot show v@s1 -o json)"

    # What only layers know is refused; what a snapshot holds is not.
    refuses 'reflink.*not known' platter snapshot changed v@s2 --since s1
    api_refuses 422 unsupported GET '/v1/snapshots/v@s3/changed?since=s1'
    refuses 'reflink.*not known' platter volume export v@s2 "$TMP/inc.qcow2" --format qcow2 --since s1
    [ ! -e "$TMP/inc.qcow2" ] || fail "a file of a refused export"
    [ "$(platter snapshot changed v@s2 --since s2 -o json)" = "" ] || fail "a snapshot differs from itself"
    platter snapshot changed v@s4 -o json >"$TMP/ranges"
    python3 - "$TMP/ranges" "$TMP/s4.raw" <<'END' || fail "the allocated ranges of v@s4"
import json, sys
data, end = bytearray(open(sys.argv[2], "rb").read()), 0
for r in map(json.loads, open(sys.argv[1])):
    assert r["offset"] >= end
    end = r["offset"] + r["length"]
    if not r["zero"]:
        data[r["offset"]:end] = bytes(r["length"])
assert end and not any(data)
END

    platter volume clone v@s2 c -o name >/dev/null
    platter volume clone v@s2 c -o name >/dev/null || fail "the same clone again"
    platter volume clone v@s4 d --size 40M -o name >/dev/null
    [ "$(format c) $(depth c) $(files)" = "raw 1 7" ] || fail "no raw clone: $(platter volume show c -o json)"
    same c "$TMP/s2.raw" clone
    write c
    keep c "$TMP/c.raw"
    keep d "$TMP/d.raw"
    [ "$(stat -c %s "$TMP/d.raw")" = $((40 << 20)) ] || fail "the larger clone's size"
    cmp -n $((32 << 20)) "$TMP/d.raw" "$TMP/s4.raw" || fail "the larger clone differs"

    platter volume restore v@s3 --yes -o name >/dev/null
    same v "$TMP/s3.raw" restored
    write v
    keep v "$TMP/v.raw"
    settle
    [ "$(format v) $(depth v) $(files)" = "raw 1 7" ] || fail "the old top is still there: $(ls "$POOL")"

    left="1 2 3 4"
    for i in $(shuf -e 1 2 3 4 --random-source=<(yes "$seed")); do
        platter snapshot delete "v@s$i" --yes >/dev/null
        left=${left/$i/}
        for k in $left; do same "v@s$k" "$TMP/s$k.raw" "without s$i"; done
    done
    for k in v c; do same $k "$TMP/$k.raw" "without snapshots"; done
    [ "$(files)" = 3 ] || fail "files of deleted snapshots: $(ls "$POOL")"
    platter snapshot create v@last -o name >/dev/null
    refuses 'has snapshots' platter volume delete v
    platter volume delete v --snapshots --yes >/dev/null
    same c "$TMP/c.raw" "alone"
    for name in c d; do platter volume delete $name --yes >/dev/null; done
    settle
    [ "$(files)" = 0 ] || fail "left over: $(ls "$POOL")"
}

# Under a writer, through the block server and straight through a loop device.
attached() { # POOL VIA
    local i first last device id before
    platter volume create n --pool "$1" --size 16M --format raw --filesystem none -o name >/dev/null
    id=$(platter attach n --to device --via "$2" -o name)
    device=$(platter attachment show "$id" -o json | jq -r .device)
    before=$(top n)
    python3 "$TMP/numbers.py" write "$device" "$TMP/told" 2>"$TMP/writer.log" &
    WRITER=$!
    for ((i = 0; i < 600; i++)); do [ -s "$TMP/told" ] && break || sleep 0.05; done
    for i in 1 2 3 4 5; do
        first=$(written)
        platter snapshot create "n@t$i" -o name >/dev/null
        last=$(written)
        echo "$first $last" >"$TMP/span$i"
        kill -0 "$WRITER" || fail "the writer ended: $(cat "$TMP/writer.log")"
    done
    [ "$(platter snapshot show n@t1 -o json | jq -r .consistency)" = crash ] || fail "consistency"
    # Deleted at once, under the writer; cloned and read beside it.
    [ "$(files)" = 6 ] || fail "files: $(ls "$POOL")"
    platter snapshot delete n@t3 --yes >/dev/null
    [ "$(files)" = 5 ] || fail "the deleted snapshot's file is still there"
    platter volume clone n@t2 k -o name >/dev/null
    kill "$WRITER"
    wait "$WRITER" 2>/dev/null || true
    WRITER=
    for i in 1 2 4 5; do
        keep "n@t$i" "$TMP/now.raw"
        # shellcheck disable=SC2046
        python3 "$TMP/numbers.py" check "$TMP/now.raw" $(cat "$TMP/span$i") || fail "t$i ($1, $2) is not one moment"
        [ "$i" != 2 ] || same k "$TMP/now.raw" "clone of t2"
    done
    [ "$(top n) $(depth n)" = "$before 1" ] || fail "another top"
    platter detach "$id" >/dev/null
    platter volume delete n --snapshots --yes >/dev/null
    platter volume delete k --yes >/dev/null
    rm -f "$TMP/told"
    settle
    [ "$(files)" = 0 ] || fail "left over: $(ls "$POOL")"
}

mounted() {
    platter volume create m --pool "$1" --size 64M --format raw --filesystem ext4 -o name >/dev/null
    for via in fuse loop; do
        platter mount m "$TMP/a" --via $via >/dev/null
        echo $via >"$TMP/a/mark"
        platter snapshot create m@$via --freeze -o name >/dev/null
        echo later >"$TMP/a/mark"
        [ "$(platter snapshot show m@$via -o json | jq -r .consistency)" = filesystem ] || fail "not frozen"
        platter mount m@$via "$TMP/b" >/dev/null
        [ "$(cat "$TMP/b/mark")" = $via ] || fail "m@$via holds $(cat "$TMP/b/mark")"
        refuses 'in use by attachment' platter snapshot delete m@$via --yes
        platter unmount "$TMP/b" >/dev/null
        platter unmount "$TMP/a" >/dev/null
    done
    platter volume restore m@fuse --yes >/dev/null
    platter mount m "$TMP/a" >/dev/null
    [ "$(cat "$TMP/a/mark")" = fuse ] || fail "restored, m holds $(cat "$TMP/a/mark")"
    platter unmount "$TMP/a" >/dev/null
    platter volume delete m --snapshots --yes >/dev/null
}

# A file in very many pieces: its writer would wait for long, so it gets a layer; nobody waits while it is detached.
fragmented() {
    local id
    platter volume create f --pool "$1" --size 96M --format raw --filesystem none -o name >/dev/null
    python3 - "$(top f)" <<'END'
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY)
for i in range(12000):
    os.pwrite(fd, b"x" * 4096, i * 8192)
os.fsync(fd)
END
    platter snapshot create f@s1 -o name >/dev/null
    [ "$(format f) $(depth f)" = "raw 1" ] || fail "detached: $(platter volume show f -o json)"
    id=$(platter attach f --to device --via loop -o name)
    platter snapshot create f@s2 -o name >/dev/null
    [ "$(format f) $(depth f)" = "raw 1" ] || fail "loop: $(platter volume show f -o json)"
    platter detach "$id" >/dev/null
    id=$(platter attach f --to device --via fuse -o name)
    platter snapshot create f@s3 -o name >/dev/null
    [ "$(format f) $(depth f)" = "qcow2 2" ] || fail "served: $(platter volume show f -o json)"
    platter detach "$id" >/dev/null
    keep f@s1 "$TMP/f1.raw"
    same f@s3 "$TMP/f1.raw" "a layer above pieces"
    platter volume delete f --snapshots --yes >/dev/null
    settle
}

for pool in $pools; do
    POOL=$POOLS/pool-$pool
    [ "$pool" != xfs ] || fragmented "$pool"
    attached "$pool" fuse
    attached "$pool" loop
    [ "$pool" = xfs ] || continue
    detached "$pool"
    mounted "$pool"
done

# ---- an incremental file onto a reflinked base
POOL=$POOLS/pool-xfs
platter volume create q --pool xfs --size 8M --filesystem none -o name >/dev/null
write() { qemu-io -f "$(format "$1")" -c "write -P $2 1M 64k" "$(top "$1")" >/dev/null; }
write q 1
platter snapshot create q@s1 -o name >/dev/null
write q 2
platter snapshot create q@s2 -o name >/dev/null
platter volume export q@s1 "$TMP/full.qcow2" --format qcow2 -o name >/dev/null
platter volume export q@s2 "$TMP/inc.qcow2" --format qcow2 --since s1 -o name >/dev/null
platter volume create r --pool xfs --size 8M --format raw --filesystem none -o name >/dev/null
platter volume import r "$TMP/full.qcow2" --source-format qcow2 --onto -o name >/dev/null
platter volume import r "$TMP/inc.qcow2" --source-format qcow2 --onto -o name >/dev/null
keep q@s2 "$TMP/s2.raw"
same r@s2 "$TMP/s2.raw" "a replica over a raw volume"
platter volume create w --pool xfs --size 8M --format raw --filesystem none -o name >/dev/null
platter snapshot create w@s1 -o name >/dev/null
refuses 'not the newest' platter volume import w "$TMP/inc.qcow2" --source-format qcow2 --onto
for name in q r w; do platter volume delete $name --snapshots --yes >/dev/null; done
settle

# ---- a pool that cannot, and one that can no longer: layers, beside the files that are there
POOL=$POOLS/pool-plain
platter volume create p --pool plain --size 8M --format raw --filesystem none -o name >/dev/null
write p 1
platter snapshot create p@s1 -o name >/dev/null
[ "$(format p) $(depth p)" = "qcow2 2" ] || fail "no layer in a pool that cannot reflink"
platter volume clone p@s1 pc -o name >/dev/null
[ "$(format pc) $(depth pc)" = "qcow2 2" ] || fail "no layer for the clone"
for name in p pc; do platter volume delete $name --snapshots --yes >/dev/null; done
settle

POOL=$POOLS/pool-xfs
platter volume create o --pool xfs --size 8M --format raw --filesystem none -o name >/dev/null
for i in 1 2; do
    write o $i
    keep o "$TMP/o$i.raw"
    platter snapshot create o@s$i -o name >/dev/null
done
stop_platterd
make_filesystem xfs "$POOLS/other" -m reflink=0
cp -a --sparse=always "$POOL/." "$POOLS/other/"
umount "$POOL"
mount --move "$POOLS/other" "$POOL" 2>/dev/null || mount --bind "$POOLS/other" "$POOL"
start_platterd
write o 3
keep o "$TMP/o3.raw"
platter snapshot create o@s3 -o name >/dev/null
write o 4
keep o "$TMP/o4.raw"
platter snapshot create o@s4 -o name >/dev/null
write o 5
keep o "$TMP/o.raw"
[ "$(format o) $(depth o)" = "qcow2 3" ] || fail "after the move: $(platter volume show o -o json)"
for i in 1 2 3 4; do same o@s$i "$TMP/o$i.raw" "after the move"; done
refuses 'reflink.*not known' platter snapshot changed o@s4 --since s1
[ "$(platter snapshot changed o@s4 --since s3 -o json | jq -s 'length')" = 1 ] || fail "changed since s3"
refuses 'does not stand on|reflink' platter snapshot changed o@s1 --since s3
platter volume clone o@s2 oc -o name >/dev/null
[ "$(format oc) $(depth oc)" = "qcow2 2" ] || fail "a clone of a raw snapshot: $(platter volume show oc -o json)"
platter snapshot delete o@s2 --yes >/dev/null
same oc "$TMP/o2.raw" "without its snapshot"
platter volume restore o@s1 --yes >/dev/null
same o "$TMP/o1.raw" restored
for i in 1 3 4; do same o@s$i "$TMP/o$i.raw" "after the restore"; done
for i in 4 1 3; do platter snapshot delete o@s$i --yes >/dev/null; settle; done
same o "$TMP/o1.raw" "without snapshots"
same oc "$TMP/o2.raw" "without snapshots"
for name in o oc; do platter volume delete $name --yes >/dev/null; done
settle
[ "$(files)" = 0 ] || fail "left over: $(ls "$POOL")"
stop_platterd
