#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What the command refuses: each with its exit code and a message that says why, and nothing is changed by it: the listings
# of volumes, attachments, files, loop devices, mounts and sockets are the same before and after.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
requires qemu-img --version
requires qemu-io --version
start_platterd
make_pool
cd "$TMP"

state() {
    platter volume list -o json
    platter attachment list -o json
    find "$PLATTERD_DIR/pool-default" "$PLATTERD_DIR/run" "$TMP/out" -printf '%p %y\n' | sort
    find "$PLATTERD_DIR/pool-default" -name 'lay-*' -type f -exec sha256sum {} + | sort
    losetup -l -n -O NAME,BACK-FILE | grep -F "$TMP" | sort || true
    grep -F "$TMP" /proc/self/mountinfo | cut -d' ' -f 4- || true
}

# refused CODE PATTERN COMMAND...
refused() {
    local code=$1 pattern=$2 before status=0
    shift 2
    before=$(state)
    "$@" >"$TMP/said" 2>&1 || status=$?
    [ "$status" = "$code" ] || fail "'$*' exits with $status, not $code: $(cat "$TMP/said")"
    grep -Eiq -- "$pattern" "$TMP/said" || fail "'$*' said: $(cat "$TMP/said") (expected /$pattern/)"
    diff <(echo "$before") <(state) >&2 || fail "the refused '$*' changed something"
}

# patch IMAGE OFFSET BYTES: a copy of base with these bytes
patch() {
    cp base "$1"
    printf '%b' "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

mkdir out mnt busy
touch out/exists
qemu-img create -q -f qcow2 base 8M
qemu-io -f qcow2 -c 'write -P 7 0 64k' base >/dev/null
platter volume create used --size 32M --filesystem ext4 >/dev/null
platter volume create free --size 32M --filesystem ext4 >/dev/null

# ---- images
head -c 1M /dev/urandom >noise
qemu-img create -q -f qcow2 -b base -F qcow2 child
qemu-img create -q -f qcow2 -o data_file=data,data_file_raw=on data-file 8M
far='\0\0\xff\xff\0\0\0\0'
l1=$(od -An -tu8 --endian=big -j40 -N8 base | tr -d ' ')
patch unknown-feature 72 '\x80'
patch l1-beyond 40 "$far"
patch refcount-beyond 48 "$far"
patch l2-beyond "$l1" '\x80\0\0\0\x7f\xff\0\0'
patch cluster-bits 20 '\0\0\0\x28'
patch version 4 '\0\0\0\x09'
head -c 50 base >short
: >empty
for how in '' --preserve; do
    import() { refused 7 "$2" platter volume import i "$1" --source-format qcow2 $how; }
    for image in noise short empty; do import "$image" 'qcow2'; done
    import child "needs its parent 'base', which was not given"
    import data-file 'data in another file'
    import unknown-feature 'unknown feature of bit 63'
    import l1-beyond 'L1 table is not inside the file'
    import refcount-beyond 'refcount table is not inside the file'
    import l2-beyond 'L1 entry 0'
    import cluster-bits 'cluster'
    import version 'version'
done
refused 7 'parent' platter volume import i base --source-format qcow2 --parent noise
refused 7 'qcow2' platter volume import i child --source-format qcow2 --parent noise:qcow2
refused 2 'format' platter volume import i base
refused 3 'none' platter volume import i none --source-format qcow2
refused 4 'used' platter volume import used base --source-format qcow2
refused 4 'exists' platter volume export free out/exists --format raw
refused 3 'no such' platter volume export free out/none/file --format raw

# ---- names
for name in '..' 'a/b' '../x' $'a\nb' $'a\x01b' $'a\x7fb' '.hidden' ''; do
    refused 7 'name' platter volume create "$name" --size 1M
    refused 7 'name' platter volume import "$name" base --source-format qcow2
done
refused 7 'name' platter pool create ../p "$TMP/out"

# ---- users and targets
platter mount used mnt >/dev/null
id=$(platter attachment list -o name)
refused 5 "$id" platter attach used --to vm
refused 5 "$id" platter attach used --to device
refused 5 "$id" platter mount used busy
refused 5 'in use' platter volume delete used --yes
refused 5 "$id" platter mount free mnt
mount -t tmpfs tmpfs busy
cleanup_fn umount busy
refused 5 'busy|mount' platter mount free busy
umount busy
refused 3 'no such file' platter mount free out/none
refused 7 'not a directory' platter mount free out/exists
refused 7 'smaller' platter volume resize used 16M
platter unmount mnt
refused 7 'smaller' platter volume resize free 16M
refused 5 'volumes|empty' platter pool delete default --yes

# ---- what qemu holds
qemu-io -f qcow2 -c 'sleep 60000' base >/dev/null &
holder=$!
cleanup_fn kill "$holder"
for ((i = 0; i < 100; i++)); do qemu-img info base >/dev/null 2>&1 || break; sleep 0.05; done
refused 5 'in use' platter volume import q base --source-format qcow2
kill "$holder"

# ---- formatting what is not provably blank
platter volume import raw noise --source-format raw --format raw >/dev/null
refused 7 'no file system' platter mount raw mnt
platter volume import raw4 noise --source-format raw --filesystem ext4 >/dev/null
refused 7 'mount|file system' platter mount raw4 mnt
truncate -s 16M foreign
mkswap foreign >/dev/null 2>&1
platter volume import foreign foreign --source-format raw >/dev/null
refused 7 'swap' platter mount foreign mnt
for offset in 0 16 31; do
    name=given-$offset
    platter volume create "$name" --size 32M --filesystem ext4 >/dev/null
    attachment=$(platter attach "$name" --to device -o json)
    head -c 64k noise | dd of="$(jq -r .device <<<"$attachment")" bs=64k seek=$((offset * 16)) oflag=direct status=none
    platter detach "$(jq -r .id <<<"$attachment")" >/dev/null
    refused 7 'not blank' platter mount "$name" mnt
    [ "$(platter volume show "$name" -o json | jq .formatted)" = false ] || fail "$name counts as formatted"
done
stop_platterd
