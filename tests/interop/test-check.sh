#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# image_check beside `qemu-img check`: the same counters on healthy and damaged images of every shape that qemu-img makes;
# after our repair qemu-img finds nothing, and what was not damaged reads as before.
# Nothing here is about what survives a power cut: do not wait for a disk.
if [ -z "${TMPDIR:-}" ] && [ -w /dev/shm ]; then export TMPDIR=/dev/shm; fi
. "$(dirname "$0")/../lib/functions.sh"
CHECK=$PLATTER_BUILD/tests/check-tool
requires test -x "$CHECK"
requires qemu-img --version
requires jq --version
cd "$TMP"

ours() { timeout 60 "$CHECK" "$@" || fail "check-tool $*"; }
# theirs FILE: qemu-img's counters. It may fail to print any on what it cannot open.
theirs() { timeout 60 qemu-img check --output json "$1" 2>/dev/null || true; }
# be FILE OFFSET BYTES; poke FILE OFFSET VALUE [BYTES]
be() { od -A n -t u1 -j "$2" -N "$3" "$1" | awk '{v = ""; for (i = 1; i <= NF; i++) v = v sprintf("%02x", $i)} END {print "0x" v}'; }
poke() { printf '%b' "$(printf "%0$((2 * ${4:-8}))x" "$3" | sed 's/../\\x&/g')" | dd of="$1" bs=1 seek="$(($2))" conv=notrunc status=none; }
l1_offset() { echo $(($(be "$1" 40 8))); }
l2_offset() { echo $(($(be "$1" "$(($(l1_offset "$1") + 8 * ${2:-0}))" 8) & 0x00fffffffffffe00)); }
refblock() { echo $(($(be "$1" "$(($(be "$1" 48 8)))" 8))); }

# agree FILE WHAT [loose]: leaks, corruptions, allocated and compressed clusters are the same, when qemu-img has any to tell.
# loose: where counts as such are damaged, or one damage counts differently, ours must only find some.
agree() {
    local q o small
    q=$(theirs "$1") o=$(ours "qcow2:$1") small=$(ours -m 4096 "qcow2:$1")
    [ "$o" = "$small" ] || fail "$2: with little memory: $small, not $o"
    jq -en --argjson q "${q:-null}" --argjson o "$o" --arg how "${3:-}" '
        ($o | .low_counts + .copied_flags + .bad_entries) as $errors
        | if $how == "loose" then $errors + $o.double_use > 0
          elif $q == null then true
          else ($q.leaks // 0) == $o.leaks and ($q["allocated-clusters"] // 0) == $o.allocated and
            ($q["compressed-clusters"] // 0) == $o.compressed and ($q.corruptions // 0) == $errors end' >/dev/null ||
        fail "$2: $q, but ours $o"
}

# repair FILE WHAT: all of it is put right, qemu-img agrees, and nothing is left for a second time.
repair() {
    local o
    o=$(ours -r ${LITTLE:+-m 4096} "qcow2:$1")
    jq -en --argjson o "$o" --argjson left "$(ours "qcow2:$1")" \
        'def all: .leaks + .low_counts + .copied_flags + .bad_entries + .double_use;
        $o.repaired == ($o | all) and ($left | all) == 0' >/dev/null || fail "$2: not all repaired: $o"
    qemu-img check "$1" >check.log 2>&1 || { cat check.log >&2; fail "$2: qemu-img check after our repair"; }
}

# damaged IMAGE WHAT DAMAGE [loose]: a copy of the image with `DAMAGE FILE` done to it: we agree, repair, and the content is as before.
damaged() {
    cp "$1" bad.qcow2
    "$3" bad.qcow2
    agree bad.qcow2 "$1: $2" "${4:-}"
    repair bad.qcow2 "$1: $2"
    qemu-img compare -q bad.qcow2 "$1" || fail "$1: $2: the content has changed"
}

# The second L2 entry's cluster (data in every image here), its index in the file, and the entry's place.
entry_at() { echo $(($(l2_offset "$1") + 2 * WIDTH)); }
cluster_of() { echo $((($(be "$1" "$(entry_at "$1")" 8) & 0x00fffffffffffe00) / CLUSTER)); }
# set_count FILE CLUSTER COUNT, for images of BITS a count, in the first block
set_count() {
    local at=$(($(refblock "$1") + $2 * BITS / 8)) byte
    if [ "$BITS" -ge 8 ]; then poke "$1" $at "$3" $((BITS / 8)); return; fi
    byte=$(($(be "$1" $at 1))) shift=$(($2 * BITS % 8))
    poke "$1" $at $((byte & ~(((1 << BITS) - 1) << shift) | $3 << shift)) 1
}
last_cluster() { echo $(($(stat -c %s "$1") / CLUSTER)); }
count_zero() { set_count "$1" "$(cluster_of "$1")" 0; }
count_high() { set_count "$1" "$(cluster_of "$1")" 2; }
leak_end() { truncate -s $((($(last_cluster "$1") + 3) * CLUSTER)) "$1"; set_count "$1" $(($(last_cluster "$1") - 2)) 1; set_count "$1" $(($(last_cluster "$1") - 1)) 1; }
copied_off() { poke "$1" "$(entry_at "$1")" $(($(be "$1" "$(entry_at "$1")" 8) & 0x7fffffffffffffff)); }
l1_copied_off() { poke "$1" "$(l1_offset "$1")" $(($(be "$1" "$(l1_offset "$1")" 8) & 0x7fffffffffffffff)); }
reserved_bit() { poke "$1" "$(entry_at "$1")" $(($(be "$1" "$(entry_at "$1")" 8) | 1 << 57)); }
l1_reserved() { poke "$1" "$(l1_offset "$1")" $(($(be "$1" "$(l1_offset "$1")" 8) | 1 << 57)); }
table_nowhere() { poke "$1" "$(($(be "$1" 48 8)))" 0x7ffffffffffe00; }
table_lost() { poke "$1" "$(($(be "$1" 48 8)))" 0; }
table_on_l2() { poke "$1" "$(($(be "$1" 48 8)))" "$(l2_offset "$1")"; }
header_table_nowhere() { poke "$1" 48 0x7ffffffffffe00; }
same_data() { poke "$1" "$(entry_at "$1")" $(($(be "$1" $(($(entry_at "$1") + WIDTH)) 8))); }
nowhere() { poke "$1" "$(entry_at "$1")" 0x0070000000000000; }
unaligned() { poke "$1" "$(entry_at "$1")" $(($(be "$1" "$(entry_at "$1")" 8) | 0x200)); }
l1_nowhere() { poke "$1" "$(l1_offset "$1")" 0x0070000000000000; }
on_l1_table() { poke "$1" "$(entry_at "$1")" $(($(be "$1" 40 8) | 1 << 63)); }

head -c 1M /dev/urandom | base64 -w0 >data.raw
truncate -s 8M data.raw
matrix=(compat=1.1 compat=0.10 cluster_size=4k cluster_size=512 refcount_bits=1 refcount_bits=64 refcount_bits=2,cluster_size=4k
    extended_l2=on extended_l2=on,cluster_size=16k,refcount_bits=32 cluster_size=2M lazy_refcounts=on)
# Which get every kind of damage; the others a few.
thorough=(compat=1.1 refcount_bits=1 extended_l2=on,cluster_size=16k,refcount_bits=32)
for options in "${matrix[@]}"; do
    qemu-img convert -O qcow2 -o "$options" data.raw good.qcow2
    qemu-io -c 'write -z 5M 1M' -c 'discard 1M 128k' -c 'write -P 5 6M 70k' good.qcow2 >/dev/null
    CLUSTER=$((1 << $(be good.qcow2 20 4)))
    BITS=16 WIDTH=8
    [[ $options =~ refcount_bits=([0-9]+) ]] && BITS=${BASH_REMATCH[1]}
    [[ $options == *extended* ]] && WIDTH=16
    agree good.qcow2 "$options"
    damaged good.qcow2 "$options: count 0" count_zero
    damaged good.qcow2 "$options: table entry lost" table_lost loose
    harm=(same_data nowhere)
    if [[ " ${thorough[*]} " == *" $options "* ]]; then
        [ "$BITS" = 1 ] || damaged good.qcow2 "$options: count 2" count_high
        damaged good.qcow2 "$options: copied" copied_off
        damaged good.qcow2 "$options: copied in L1" l1_copied_off
        LITTLE=1 damaged good.qcow2 "$options: table entry nowhere" table_nowhere loose
        damaged good.qcow2 "$options: table entry on an L2 table" table_on_l2 loose
        LITTLE=1 damaged good.qcow2 "$options: table nowhere" header_table_nowhere loose
        damaged good.qcow2 "$options: reserved bit" reserved_bit loose
        damaged good.qcow2 "$options: reserved bit in L1" l1_reserved loose
        # Only where the first block counts the end of the file, too.
        [ $(($(last_cluster good.qcow2) + 3)) -ge $((CLUSTER * 8 / BITS)) ] || damaged good.qcow2 "$options: leaks at the end" leak_end
        harm+=(unaligned l1_nowhere on_l1_table)
    fi
    # These change what is read; the rest of the image stays.
    for damage in "${harm[@]}"; do
        [ "$damage" != unaligned ] || [ "$CLUSTER" != 512 ] || continue
        cp good.qcow2 bad.qcow2
        "$damage" bad.qcow2
        agree bad.qcow2 "$options: $damage" loose
        case $damage in same_data | on_l1_table) qemu-img convert -O raw bad.qcow2 before.raw ;; *) rm -f before.raw ;; esac
        repair bad.qcow2 "$options: $damage"
        [ ! -e before.raw ] || qemu-img compare -q bad.qcow2 before.raw || fail "$options: $damage: both must keep their data"
        qemu-io -c 'write -P 0x33 0 1M' -c 'read -P 0x33 0 1M' -c 'discard 256k 256k' bad.qcow2 >io.log || fail "$options: $damage: write"
        qemu-img check -q bad.qcow2 || fail "$options: $damage: writing did new damage"
        agree bad.qcow2 "$options: $damage, then written"
    done
    echo "ok: $options"
done

# Compressed clusters, snapshots, bitmaps, a data cluster in two places.
CLUSTER=65536 BITS=16 WIDTH=8
for options in compression_type=zlib compression_type=zstd compression_type=zstd,cluster_size=4k compression_type=zlib,extended_l2=on; do
    qemu-img convert -c -O qcow2 -o "$options" data.raw packed.qcow2
    agree packed.qcow2 "$options"
    damaged packed.qcow2 "compressed, $options: table entry lost" table_lost loose
done
CLUSTER=65536
qemu-img convert -O qcow2 data.raw snap.qcow2
qemu-img snapshot -c one snap.qcow2
qemu-io -c 'write -P 9 100k 300k' -c 'write -P 8 7M 300k' snap.qcow2 >/dev/null
qemu-img snapshot -c two snap.qcow2
qemu-img bitmap --add snap.qcow2 b0
qemu-img bitmap --add -g 64k snap.qcow2 b1
qemu-io -c 'write -P 9 3M 300k' snap.qcow2 >/dev/null
agree snap.qcow2 "snapshots and bitmaps"
damaged snap.qcow2 "count 0" count_zero
damaged snap.qcow2 "copied" copied_off
damaged snap.qcow2 "table entry lost" table_lost loose
LITTLE=1 damaged snap.qcow2 "table entry on an L2 table" table_on_l2 loose
qemu-img info --output json bad.qcow2 | jq -e '."format-specific".data.bitmaps | length == 2' >/dev/null || fail "the bitmaps are lost"
for name in one two; do
    qemu-img convert -l "snapshot.name=$name" -O raw bad.qcow2 bad.raw
    qemu-img convert -l "snapshot.name=$name" -O raw snap.qcow2 good.raw
    cmp bad.raw good.raw || fail "snapshot $name has changed"
done
qemu-img snapshot -d one bad.qcow2
agree bad.qcow2 "one snapshot deleted"
echo "ok: snapshots, bitmaps, compressed clusters"

# A bitmap that lost its table: all bitmaps are given up, and their space is given back.
cp snap.qcow2 bad.qcow2
extension=$(LC_ALL=C grep -abo $'\x23\x85\x28\x75' bad.qcow2 | head -n 1 | cut -d: -f1)
poke bad.qcow2 $(($(be bad.qcow2 $((extension + 24)) 8))) 0x70000000000000
agree bad.qcow2 "bitmap table nowhere" loose
ours -r qcow2:bad.qcow2 >/dev/null
agree bad.qcow2 "bitmap table nowhere, repaired"
qemu-img check -q bad.qcow2 2>/dev/null && qemu-img compare -q bad.qcow2 snap.qcow2 2>/dev/null || fail "bitmap table nowhere: not repaired"
echo "ok: a damaged bitmap"

# An image that lost its dirty bit's counts; the corrupt bit goes when nothing is wrong.
qemu-img create -q -f qcow2 -o lazy_refcounts=on lazy.qcow2 64M
{ qemu-io -c 'write -P 7 1M 3M' -c flush -c abort lazy.qcow2 >/dev/null 2>&1; } 2>/dev/null || true
[ "$(ours qcow2:lazy.qcow2 | jq .dirty)" = true ] || fail "the dirty bit"
poke lazy.qcow2 72 $(($(be lazy.qcow2 72 8) | 2))
repair lazy.qcow2 "dirty"
[ "$(ours qcow2:lazy.qcow2 | jq '.dirty or .corrupt')" = false ] || fail "the bits are still set"
qemu-io -c 'read -P 7 1M 3M' lazy.qcow2 | grep -q 'read 3145728' || fail "dirty: the content"
echo "ok: dirty and corrupt"
