#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A guest uses a sandboxed block server's disk: plugged in live, grown under the mounted file system, unplugged.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/vm.sh"
PATH=$PLATTER_BUILD/tests:$PATH

truncate -s 64M "$TMP/disk.img"
pid=$(blk-host serve "$TMP/s.sock" --export "vhost-user-blk:vol:$TMP/vhost.sock:1" "raw:$TMP/disk.img")
cleanup_fn kill -9 "$pid"
vm_start

vm_qmp '{"execute": "chardev-add", "arguments": {"id": "c", "backend": {"type": "socket", "data":
    {"addr": {"type": "unix", "data": {"path": "'"$TMP/vhost.sock"'"}}, "server": false, "reconnect": 1}}}}' >/dev/null
vm_qmp '{"execute": "device_add", "arguments": {"driver": "vhost-user-blk-pci", "chardev": "c", "id": "v", "bus": "rp0",
    "num-queues": 1}}' >/dev/null
vm_run 'i=0; until [ -b /dev/vda ]; do i=$((i + 1)); [ $i -lt 100 ] || exit 1; sleep 0.1; done'
[[ $(vm_run 'cat /sys/block/vda/queue/write_cache') == 'write back' ]] || fail "the guest would send no flushes"
vm_run 'mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt && dd if=/dev/urandom of=/mnt/a bs=1M count=20 &&
    sync && md5sum /mnt/a' >/dev/null

blk-host resize "$TMP/s.sock" $((128 * 1048576))
vm_run 'i=0; until [ $(cat /sys/block/vda/size) = 262144 ]; do i=$((i + 1)); [ $i -lt 100 ] || exit 1; sleep 0.1; done' ||
    fail "the guest does not see the new size"
vm_run 'resize2fs /dev/vda && dd if=/dev/urandom of=/mnt/b bs=1M count=60 && sync' >/dev/null || fail "not grown"
sums=$(vm_run 'cd /mnt && md5sum a b; cd / && umount /mnt')
vm_qmp '{"execute": "device_del", "arguments": {"id": "v"}}' >/dev/null
vm_qmp_wait DEVICE_DELETED >/dev/null
vm_stop
blk-host close "$TMP/s.sock"

e2fsck -fn "$TMP/disk.img" >/dev/null 2>&1 || fail "the file system is not clean"
for name in a b; do
    sum=$(debugfs -R "cat $name" "$TMP/disk.img" 2>/dev/null | md5sum | cut -d' ' -f1)
    grep -q "^$sum  $name$" <<<"$sums" || fail "file $name differs from what the guest wrote"
done
