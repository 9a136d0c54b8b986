#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A guest boots with an attached volume by the QEMU arguments that the command prints: a write-back cache, a serial, space
# given back, grown under the mounted file system, writing on while platterd is killed; and the host finds the same files.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
. "$(dirname "$0")/../lib/vm.sh"
VM_PROGRAMS='fstrim'
vm_requires
mkdir "$TMP/mnt"
start_platterd
make_pool

# guest_waits CONDITION: until it holds in the guest
guest_waits() {
    vm_run "i=0; until $1; do i=\$((i + 1)); [ \$i -lt 100 ] || exit 1; sleep 0.1; done" || fail "the guest waited for: $1"
}
used() { platter volume show disk -o json | jq .used; }

platter volume create disk --size 96M --format qcow2 --filesystem ext4 >/dev/null
attachment=$(platter attach disk --to vm --holder 'guest of this test' -o json)
id=$(jq -r .id <<<"$attachment")
mapfile -t arguments < <(jq -r '.qemu.arguments[]' <<<"$attachment")
vm_start "${arguments[@]}"

[ "$(vm_run 'cat /sys/block/vda/queue/write_cache')" = 'write back' ] || fail "the guest would send no flushes"
# An id of virtio has 20 bytes; vol- and 16 digits are just that.
[ "$(vm_run 'cat /sys/block/vda/serial')" = "$(jq -r .volume_id <<<"$attachment")" ] || fail "the serial is not the volume's id"
[ "$(vm_run 'cat /sys/block/vda/queue/discard_max_bytes')" -gt 0 ] || fail "no discard"

vm_run 'mkfs.ext4 -q -F /dev/vda && mount -t ext4 /dev/vda /mnt && dd if=/dev/urandom of=/mnt/keep bs=1M count=6 &&
    dd if=/dev/urandom of=/mnt/gone bs=1M count=50 && sync' >/dev/null || fail "no file system in the guest"
[ "$(used)" -gt $((55 * 1048576)) ] || fail "56 MiB were written, but $(used) bytes are used"
vm_run 'rm /mnt/gone && sync && fstrim /mnt' || fail "fstrim"
for ((i = 0; $(used) > 25 * 1048576; i++)); do
    [ "$i" -lt 100 ] || fail "50 MiB were trimmed, but $(used) bytes are still used"
    sleep 0.1
done

# Held: nobody else gets it, and the guest is named.
refuses 'guest of this test' platter attach disk --to vm
refuses 'guest of this test' platter attach disk --to device
refuses "$id" platter mount disk "$TMP/mnt"
refuses 'in use' platter volume delete disk --yes
[ "$(platter attachment list -o name)" = "$id" ] || fail "a refused attach left an attachment"

# Grown under the mounted file system.
platter volume resize disk 160M >/dev/null
guest_waits '[ $(cat /sys/block/vda/size) = 327680 ]'
vm_run 'resize2fs /dev/vda && dd if=/dev/urandom of=/mnt/more bs=1M count=100 && sync' >/dev/null || fail "not grown"

# platterd dies and returns while the guest writes.
vm_run '{ i=0; while [ ! -e /tmp/stop ]; do i=$((i + 1))
        dd if=/dev/urandom of=/mnt/loop$((i % 8)) bs=64k count=4 conv=fsync 2>/dev/null || echo $i >>/tmp/failed
        echo $i >/tmp/count; done; touch /tmp/stopped; } >/dev/null 2>&1 &' >/dev/null
guest_waits '[ "$(cat /tmp/count 2>/dev/null || echo 0)" -ge 3 ]'
kill_platterd
before=$(vm_run 'cat /tmp/count')
guest_waits "[ \"\$(cat /tmp/count)\" -ge $((before + 3)) ]"
start_platterd
before=$(vm_run 'cat /tmp/count')
guest_waits "[ \"\$(cat /tmp/count)\" -ge $((before + 3)) ]"
[ "$(platter attachment show "$id" -o json | jq -r .state)" = attached ] || fail "the attachment was lost"
refuses 'guest of this test' platter attach disk --to device
vm_run 'touch /tmp/stop'
guest_waits '[ -e /tmp/stopped ]'
vm_run '[ ! -e /tmp/failed ]' || fail "a write of the guest failed"
if vm_run 'dmesg' | grep -i 'i/o error'; then fail "the guest saw an I/O error"; fi

sums=$(vm_run 'cd /mnt && md5sum *0 *1 keep more; cd / && umount /mnt')
vm_stop
platter detach "$id" >/dev/null
[ "$(platter attachment list -o name)" = '' ] || fail "the attachment is still there"

# The host reads what the guest wrote.
platter mount disk "$TMP/mnt" >/dev/null
(cd "$TMP/mnt" && md5sum --quiet -c <<<"$sums") || fail "the host reads other files than the guest wrote"
platter unmount "$TMP/mnt"
layer=$(platter volume show disk -o json | jq -r '.layers[0].id')
qemu-img check -q "$PLATTERD_DIR/pool-default/$layer.img" || fail "qemu-img check"
platter volume delete disk --yes >/dev/null
stop_platterd
