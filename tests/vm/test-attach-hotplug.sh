#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# With --qmp platter plugs volumes into a running guest and takes them out again, by both exports; what the guest wrote is in
# the image. A guest that still holds a disk which it was given by hand keeps it.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
. "$(dirname "$0")/../lib/vm.sh"
vm_requires
start_platterd
make_pool
vm_start

guest_waits() {
    vm_run "i=0; until $1; do i=\$((i + 1)); [ \$i -lt 100 ] || exit 1; sleep 0.1; done" || fail "the guest waited for: $1"
}
peripherals() { vm_qmp '{"execute": "qom-list", "arguments": {"path": "/machine/peripheral"}}' | jq -r '.[].name'; }
backends() {
    vm_qmp '{"execute": "query-chardev"}' | jq -r '.[].label'
    vm_qmp '{"execute": "query-named-block-nodes"}' | jq -r '.[]."node-name"'
}

for export in vhost-user-blk nbd; do
    platter volume create "v-$export" --size 64M --filesystem ext4 >/dev/null
    attachment=$(platter attach "v-$export" --to vm --export "$export" --qmp "$VM_DIR/qmp" --queues 1 -o json)
    id=$(jq -r .id <<<"$attachment")
    guest_waits '[ -b /dev/vda ]'
    [ "$(vm_run 'cat /sys/block/vda/serial')" = "$(jq -r .volume_id <<<"$attachment")" ] || fail "$export: serial"
    [ "$(vm_run 'cat /sys/block/vda/queue/write_cache')" = 'write back' ] || fail "$export: no write-back cache"
    peripherals | grep -qx "$id" || fail "$export: QEMU has no device $id"
    vm_run 'mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt && dd if=/dev/urandom of=/mnt/file bs=1M count=20 &&
        sync' >/dev/null || fail "$export: the guest cannot use the disk"
    sum=$(vm_run 'md5sum </mnt/file && umount /mnt')
    refuses "$id" platter attach "v-$export" --to vm --export nbd --qmp "$VM_DIR/qmp"
    platter detach "$id" >/dev/null
    guest_waits '[ ! -e /sys/block/vda ]'
    if peripherals | grep -q "$id"; then fail "$export: the device is still in QEMU"; fi
    if backends | grep -q "$id"; then fail "$export: the backend is still in QEMU"; fi
    [ -z "$(platter attachment list -o name)" ] || fail "$export: the attachment is still there"
    mkdir "$TMP/$export"
    platter mount "v-$export" "$TMP/$export" >/dev/null
    [ "$(md5sum <"$TMP/$export/file")" = "$sum" ] || fail "$export: the host reads another file"
    platter unmount "$TMP/$export"
done

# Plugged in by hand with the printed commands: the guest's disk is not pulled from under it.
attachment=$(platter attach v-vhost-user-blk --to vm --queues 1 -o json)
id=$(jq -r .id <<<"$attachment")
vm_qmp "$(jq -c '.qemu.qmp[0]' <<<"$attachment")" >/dev/null
vm_qmp "$(jq -c '.qemu.qmp[1] | .arguments.bus = "rp1"' <<<"$attachment")" >/dev/null
guest_waits '[ -b /dev/vda ]'
refuses 'still connected' platter detach "$id"
vm_run 'mount -t ext4 /dev/vda /mnt && md5sum </mnt/file >/dev/null && echo more >/mnt/more && umount /mnt' ||
    fail "the refused detach took the disk away"
vm_qmp '{"execute": "device_del", "arguments": {"id": "'"$id"'"}}' >/dev/null
vm_qmp_wait DEVICE_DELETED >/dev/null
vm_qmp '{"execute": "chardev-remove", "arguments": {"id": "'"$id"'"}}' >/dev/null
platter detach "$id" >/dev/null

# A QMP socket that nobody serves: nothing is left.
refuses 'connect|no such' platter attach v-nbd --to vm --export nbd --qmp "$TMP/no-qmp"
[ -z "$(platter attachment list -o name)" ] || fail "a failed attach left an attachment"
[ -z "$(ls "$PLATTERD_DIR"/run/blk "$PLATTERD_DIR"/run/vm | grep sock)" ] || fail "a failed attach left a socket"

# The guest ends with a plugged disk: it can be detached.
id=$(platter attach v-nbd --to vm --export nbd --qmp "$VM_DIR/qmp" -o name)
guest_waits '[ -b /dev/vda ]'
vm_stop
platter detach "$id" >/dev/null || fail "the disk of a guest that ended cannot be detached"
for export in vhost-user-blk nbd; do platter volume delete "v-$export" --yes >/dev/null; done
stop_platterd
