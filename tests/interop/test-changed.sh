#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What changed between layers: lists, an NBD context, incremental files. qemu-img reads the files and judges the result; nbdinfo
# shows the context; the sandboxed worker does the work.
. "$(dirname "$0")/../lib/functions.sh"
PATH=$PLATTER_BUILD/tests:$PATH
requires qemu-img --version
requires nbdinfo --version

kib=1024
size=$((64 * 1024 * kib))
layer() { echo "$TMP/layer-$1"; }
new_layer() { # NUMBER BYTES
    qemu-img create -q -f qcow2 -o cluster_size=64k,extended_l2=on -b "$(layer $(($1 - 1)))" -F qcow2 "$(layer "$1")" "$2"
}
io() { # LAYER COMMAND...
    local file commands=()
    file=$(layer "$1")
    shift
    for command; do commands+=(-c "$command"); done
    qemu-io -t unsafe -f qcow2 "${commands[@]}" "$file" >/dev/null
}
chain() { # TOP: its layers as blk-host takes them
    for ((i = $1; i >= 0; i--)); do echo "qcow2:$(layer "$i")"; done
}
expect() { # NAME: the lines of the standard input are those of $TMP/found
    diff - "$TMP/found" || fail "$1"
}

qemu-img create -q -f qcow2 "$(layer 0)" "$size"
io 0 'write -P 1 0 1M' 'write -P 2 10M 1M'
new_layer 1 "$size"
io 1 'write -P 3 64k 64k' 'write -z 10M 128k'
new_layer 2 $((size + 1024 * kib))
io 2 'write -P 4 20M 2k' "write -P 5 $((size + 64 * kib)) 64k"
mapfile -t all < <(chain 2)
mapfile -t first < <(chain 1)

blk-host changed 1 "${first[@]}" >"$TMP/found"
expect 'layer 1' <<END
65536 65536 data
10485760 131072 zero
END
blk-host changed 2 "${all[@]}" >"$TMP/found"
expect 'layers 1 and 2' <<END
65536 65536 data
10485760 131072 zero
20971520 2048 data
$size 65536 zero
$((size + 64 * kib)) 65536 data
$((size + 128 * kib)) $((896 * kib)) zero
END
blk-host changed 0 "${all[@]}" >"$TMP/found"
expect 'all that is allocated' <<END
0 1048576 data
10485760 131072 zero
10616832 917504 data
20971520 2048 data
$((size + 64 * kib)) 65536 data
END
refuses 'has 3 layers' blk-host changed 4 "${all[@]}"

# By NBD, for an image that is read only, and live with a snapshot in between.
show() { # CONTEXT: offset length flags
    nbdinfo --map="$1" "nbd+unix:///vol?socket=$TMP/nbd.sock" | awk '{print $1, $2, $3}' >"$TMP/found"
}
pid=$(blk-host serve "$TMP/s.sock" --read-only --export "nbd:vol:$TMP/nbd.sock" "${all[@]}")
cleanup_fn kill -9 "$pid"
nbdinfo --list "nbd+unix:///vol?socket=$TMP/nbd.sock" | grep -c 'x-platter:changed-since/[12]$' | expect_count=2 \
    bash -c 'read -r n; [[ $n == "$expect_count" ]]' || fail 'the contexts are not listed'
show x-platter:changed-since/2
expect 'the context of two layers' <<END
0 65536 0
65536 65536 1
131072 10354688 0
10485760 131072 3
10616832 10354688 0
20971520 2048 1
20973568 $((size - 20973568)) 0
$size 65536 3
$((size + 64 * kib)) 65536 1
$((size + 128 * kib)) $((896 * kib)) 3
END
refuses 'context' nbdinfo --map=x-platter:changed-since/3 "nbd+unix:///vol?socket=$TMP/nbd.sock"
refuses 'context' nbdinfo --map=x-platter:changed-since/01 "nbd+unix:///vol?socket=$TMP/nbd.sock"
blk-host close "$TMP/s.sock"

# Debian's bindings belong to Debian's Python, whatever stands before it in the path.
if /usr/bin/python3 -c 'import nbd' 2>/dev/null; then
    new_layer 3 $((size + 1024 * kib))
    new_layer 4 $((size + 1024 * kib))
    mapfile -t live < <(chain 3)
    pid=$(blk-host serve "$TMP/s.sock" --export "nbd:vol:$TMP/nbd.sock" "${live[@]}")
    cleanup_fn kill -9 "$pid"
    cat >"$TMP/both.py" <<END
import nbd, subprocess
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.add_meta_context("x-platter:changed-since/1")
h.connect_unix("$TMP/nbd.sock")
def status(offset, length, flags=0):
    found = {}
    def extents(context, at, entries, error):
        assert at == offset and context not in found
        found[context] = entries
    h.block_status(length, offset, extents, flags)
    assert sorted(found) == ["base:allocation", "x-platter:changed-since/1"], found
    return found["x-platter:changed-since/1"]
assert status(0, 1 << 20) == [1 << 20, 0]
h.pwrite(b"x" * 65536, 65536)
assert status(0, 1 << 18) == [65536, 0, 65536, 1, 131072, 0]
# A snapshot does not move what this connection asked for.
subprocess.run(["blk-host", "snapshot", "$TMP/s.sock", "s4", "qcow2:$(layer 4)"], check=True, stdout=subprocess.DEVNULL)
h.zero(65536, 131072)
assert status(0, 1 << 18) == [65536, 0, 65536, 1, 65536, 3, 65536, 0]
assert status(65536, 1 << 18, nbd.CMD_FLAG_REQ_ONE) == [65536, 1]
for i in range(300):
    assert status(i * 512, 1 << 18)
END
    /usr/bin/python3 "$TMP/both.py" || fail 'both contexts at once'
    blk-host close "$TMP/s.sock"
fi

# Incremental files, in steps and in one.
note='{"platter":1,"target":"two"}'
blk-host export-since 1 "qcow2:layer-0" "$note" "$TMP/delta-1" "${first[@]}" >"$TMP/found"
expect 'bytes of data' <<<65536
blk-host export-since 2 "qcow2:layer-0" "$note" "$TMP/delta-2" "${all[@]}" >/dev/null
blk-host probe "qcow2:$TMP/delta-2" | grep -Fq "backing 'layer-0' note $note" || fail 'the note'
for number in 1 2; do
    qemu-img check -q -f qcow2 "$TMP/delta-$number" || fail "delta-$number is damaged"
    cp "$TMP/delta-$number" "$TMP/rebased"
    qemu-img rebase -u -f qcow2 -F qcow2 -b "$(layer 0)" "$TMP/rebased"
    blk-host probe "qcow2:$TMP/rebased" | grep -Fq "$note" || fail 'qemu-img dropped the note'
    qemu-img compare -q -f qcow2 -F qcow2 "$TMP/rebased" "$(layer "$number")" || fail "delta-$number over its base differs"
done

import_onto() { # FILE BYTES
    blk-host import-onto "$note" "$size" "$2" "$1" "qcow2:$TMP/replica" "qcow2:$(layer 0)"
}
new_replica() {
    qemu-img create -q -f qcow2 -o extended_l2=on -b "$(layer 0)" -F qcow2 "$TMP/replica" "$size"
}
grown=$((size + 1024 * kib))
for number in 1 2; do
    bytes=$( ((number == 1)) && echo "$size" || echo "$grown")
    new_replica
    import_onto "$TMP/delta-$number" "$bytes" >/dev/null
    qemu-img check -q -f qcow2 "$TMP/replica" || fail 'the replica is damaged'
    qemu-img compare -q -s -f qcow2 -F qcow2 "$TMP/replica" "$(layer "$number")" || fail "replica $number differs"
    refuses 'changed-since|size-mismatch' import_onto "$TMP/delta-$number" "$bytes"
done

# Refused before anything is written.
new_replica
note=other refuses 'wrong-file' import_onto "$TMP/delta-2" "$grown"
refuses 'size-mismatch' import_onto "$TMP/delta-2" "$size"
head -c 200000 "$TMP/delta-2" >"$TMP/cut"
refuses 'corrupt|damaged' import_onto "$TMP/cut" "$grown"
head -c 100 /dev/urandom >"$TMP/noise"
refuses 'not a qcow2 image' import_onto "$TMP/noise" "$grown"
qemu-img compare -q -s -f qcow2 -F qcow2 "$TMP/replica" "$(layer 0)" || fail 'a refused file changed the image'
