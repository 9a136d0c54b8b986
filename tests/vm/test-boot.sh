#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The harness itself: a guest boots, runs commands, gets a disk by hot-plug and gives it back.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/vm.sh"

truncate -s 64M "$TMP/disk.img"
vm_start

[[ $(vm_run 'echo hello; printf world') == $'hello\nworld' ]] || fail "output of a command is lost"
if vm_run 'exit_status() { return 3; }; exit_status'; then fail "the exit status is lost"; else
    [[ $? == 3 ]] || fail "the exit status is wrong"
fi

vm_qmp '{"execute": "blockdev-add", "arguments": {"driver": "file", "node-name": "d", "filename": "'"$TMP/disk.img"'"}}' >/dev/null
vm_qmp '{"execute": "device_add", "arguments": {"driver": "virtio-blk-pci", "drive": "d", "id": "v", "bus": "rp0"}}' >/dev/null
vm_run 'i=0; until [ -b /dev/vda ]; do i=$((i + 1)); [ $i -lt 100 ] || exit 1; sleep 0.1; done
    mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt && echo from the guest >/mnt/file && umount /mnt'
vm_qmp '{"execute": "device_del", "arguments": {"id": "v"}}' >/dev/null
vm_qmp_wait DEVICE_DELETED >/dev/null
vm_stop
e2fsck -fn "$TMP/disk.img" >/dev/null 2>&1 || fail "the file system is not clean"
debugfs -R 'cat file' "$TMP/disk.img" 2>/dev/null | grep -q 'from the guest' || fail "the guest's file is not there"
