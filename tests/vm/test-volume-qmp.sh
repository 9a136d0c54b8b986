#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A volume goes from a host mount to a running guest and back, plugged in and out by platterd over QMP, with each export.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
. "$(dirname "$0")/../lib/vm.sh"
[ "$(id -u)" = 0 ] || skip "needs root"
MNT=$TMP/mnt
mkdir "$MNT"
umount_mnt() { umount -q "$MNT" || true; }
cleanup_fn umount_mnt
start_platterd
make_pool
platter volume create v --size 128M -o name >/dev/null
vm_start

wait_size() { vm_run 'i=0; until [ "$(cat /sys/block/vda/size 2>/dev/null)" = '"$1"' ]; do i=$((i + 1)); [ $i -lt 100 ] || exit 1; sleep 0.1; done'; }
gone() { vm_run 'i=0; while [ -b /dev/vda ]; do i=$((i + 1)); [ $i -lt 100 ] || exit 1; sleep 0.1; done'; }
size=262144
for export in vhost-user-blk nbd; do
    platter mount v "$MNT" >/dev/null
    echo "host for $export" >"$MNT/host"
    platter unmount "$MNT" >/dev/null
    id=$(platter attach v --to vm --export "$export" --qmp "$VM_DIR/qmp" -o name) || fail "$export: not plugged in"
    wait_size $size || fail "$export: the guest sees no disk"
    [ "$(vm_run 'mount -t ext4 /dev/vda /mnt && cat /mnt/host')" = "host for $export" ] || fail "$export: guest reads wrong"
    vm_run "echo 'guest by $export' >/mnt/guest && sync && umount /mnt"
    if [ "$export" = vhost-user-blk ]; then # this QEMU's NBD client does not follow a size
        size=294912
        platter volume resize v 144M -o name >/dev/null
        wait_size $size || fail "$export: the guest does not see the new size"
    fi
    # A platterd that was started anew plugs out what the one before plugged in.
    kill_platterd
    start_platterd
    platter detach "$id" >/dev/null || fail "$export: not plugged out"
    gone || fail "$export: the disk is still in the guest"
    platter mount v "$MNT" >/dev/null
    [ "$(cat "$MNT/guest")" = "guest by $export" ] || fail "$export: the guest's file is lost"
    platter unmount "$MNT" >/dev/null
done

# A guest that ended without giving the disk back is no hindrance.
id=$(platter attach v --to vm --qmp "$VM_DIR/qmp" -o name)
vm_stop
platter detach "$id" >/dev/null || fail "an ended guest hinders detaching"
[ "$(platter attachment list -o json)" = '[]' ] || fail "an attachment is left"
stop_platterd
