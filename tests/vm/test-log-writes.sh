#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The power is cut at every flush that a guest's ext4 sent: the guest writes through dm-log-writes over its disk of
# ours, and the log is replayed to every flush, FUA write and mark. At each point the file system is clean once its
# journal is replayed, and holds the files whose fsync had returned. Replayed to its end, the log equals the disk, byte
# for byte. A planted fault must be found: a replay that leaves out the writes of one flush.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
. "$(dirname "$0")/../lib/vm.sh"
PATH=$PLATTER_BUILD/tests:$PATH
VM_PROGRAMS='dmsetup'
VM_MODULES+=(dm-log-writes)
vm_requires
requires command -v dmsetup
FILES=12
SIZE=$((24 * 1048576))
start_platterd
make_pool

# ---- the guest ------------------------------------------------------------------------------------------------

platter volume create disk --size "$SIZE" --format qcow2 -o name >/dev/null
attachment=$(platter attach disk --to vm -o json)
id=$(jq -r .id <<<"$attachment")
mapfile -t arguments < <(jq -r '.qemu.arguments[]' <<<"$attachment")
truncate -s 256M "$TMP/log"
vm_start "${arguments[@]}" -drive "file=$TMP/log,format=raw,if=none,id=log" -device virtio-blk-pci,drive=log

[ "$(vm_run 'cat /sys/block/vda/queue/write_cache')" = 'write back' ] || fail "the guest would send no flushes"
vm_run "dmsetup create lw --table '0 $((SIZE / 512)) log-writes /dev/vda /dev/vdb' && dmsetup mknodes &&
    mkfs.ext4 -q -F -b 4096 -J size=4 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/lw && sync &&
    dmsetup message lw 0 mark made && mount -t ext4 /dev/mapper/lw /mnt" || fail "no dm-log-writes in the guest"

# File N has N * 7000 bytes of its own.
vm_run "i=1; while [ \$i -le $FILES ]; do
    yes \"file \$i \" | head -c \$((i * 7000)) >/tmp/data || exit 1
    dd if=/tmp/data of=/mnt/\$i bs=64k conv=fsync 2>/dev/null || exit 1
    dmsetup message lw 0 mark file-\$i; i=\$((i + 1)); done" || fail "the guest cannot write"
vm_run 'umount /mnt && dmsetup remove lw && sync' || fail "the guest cannot unmount"
vm_stop
platter detach "$id" >/dev/null

# ---- the replay -----------------------------------------------------------------------------------------------

mkdir "$TMP/expected" "$TMP/found"
for ((i = 1; i <= FILES; i++)); do yes "file $i " | head -c $((i * 7000)) >"$TMP/expected/$i" || true; done
replay_log list "$TMP/log" >"$TMP/list"
made=$(awk '$2 ~ /mark/ && $5 == "made" {print $1}' "$TMP/list")
[ -n "$made" ] || fail "the log has no mark: $(tail -n 3 "$TMP/list")"

# check_point IMAGE FILES: status 0 when the file system, after its journal's replay, is clean and has the files 1 to
# FILES
check_point() {
    local i status=0
    cp --sparse=always "$1" "$TMP/point"
    e2fsck -p -E journal_only "$TMP/point" >"$TMP/fsck" 2>&1 || status=$?
    [ "$status" -le 1 ] || return 1
    e2fsck -fn "$TMP/point" >>"$TMP/fsck" 2>&1 || return 1
    rm -f "$TMP"/found/*
    for ((i = 1; i <= $2; i++)); do echo "dump /$i $TMP/found/$i"; done >"$TMP/commands"
    debugfs -f "$TMP/commands" "$TMP/point" >/dev/null 2>&1
    for ((i = 1; i <= $2; i++)); do
        cmp "$TMP/expected/$i" "$TMP/found/$i" >>"$TMP/fsck" 2>&1 || return 1
    done
}

# points: "NUMBER FILES" for each point after the file system was made: entries below NUMBER, files then promised
points() {
    awk -v made="$made" '$2 ~ /mark/ && $5 ~ /^file-/ {split($5, mark, "-"); files = mark[2]}
        $1 >= made && $2 ~ /flush|fua|mark/ {print $1 + 1, files + 0}' "$TMP/list"
}

truncate -s "$SIZE" "$TMP/disk"
at=0 count=0 promised=0
while read -r number files; do
    replay_log apply "$TMP/log" "$TMP/disk" "$at" "$number"
    at=$number
    check_point "$TMP/disk" "$files" || fail "entry $((number - 1)), files promised: $files: $(cat "$TMP/fsck")"
    count=$((count + 1)) promised=$files
done < <(points)
[ "$promised" = "$FILES" ] && [ "$count" -gt $((FILES * 2)) ] || fail "only $count points, $promised files"
echo "$count points of $(wc -l <"$TMP/list") entries: clean, and what was fsynced is there"

# The disk itself: what the guest unmounted.
replay_log apply "$TMP/log" "$TMP/disk" "$at" 4294967295
qemu-img compare -q -f raw -F qcow2 "$TMP/disk" "$(echo "$PLATTERD_DIR"/pool-default/lay-*.img)" ||
    fail "the disk does not hold what its log says"

# ---- the planted fault: the writes of one flush are left out ---------------------------------------------------

# The first flush with writes after the mark of file 5, as a disk that answered it at once would lose them.
read -r from to until < <(awk '
    $2 ~ /mark/ && $5 == "file-5" {from = $1 + 1; next}
    $2 ~ /mark/ && $5 == "file-6" {print from, to, $1; exit}
    from && !to && $2 ~ /write/ {writes = 1}
    from && !to && writes && $2 ~ /flush/ {to = $1}' "$TMP/list")
[ "$to" -gt "$from" ] || fail "no flush between file 5 and file 6"
truncate -s 0 "$TMP/disk" && truncate -s "$SIZE" "$TMP/disk"
replay_log apply "$TMP/log" "$TMP/disk" 0 "$from"
check_point "$TMP/disk" 5 || fail "before the planted fault: $(cat "$TMP/fsck")"
replay_log apply "$TMP/log" "$TMP/disk" "$to" "$until"
if check_point "$TMP/disk" 6; then fail "a flush's writes were left out, and nobody noticed"; fi
echo "planted fault: found: $(tail -n 1 "$TMP/fsck")"
platter volume delete disk --yes >/dev/null
stop_platterd
