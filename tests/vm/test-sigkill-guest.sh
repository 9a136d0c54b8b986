#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A guest writes and calls fsync, and tells each fsync that returned; then the server of its disk is killed. All that it
# told must be in the image of ours. The control is a server with a known loss: qemu-storage-daemon lets the guest
# choose the cache's mode and says "write through" at first, so the guest sends no flushes, and qcow2's tables die with
# the process.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
. "$(dirname "$0")/../lib/vm.sh"
vm_requires
requires command -v qemu-storage-daemon
PIECE=65536 # the size of a cluster, so each piece needs a new table entry
start_platterd
make_pool

# stamp NAME NUMBER: a piece's content; the same command runs in the guest
stamp() { yes "piece $2 of $1 " | head -c "$PIECE"; }

platter volume create ours --size 256M --format qcow2 -o name >/dev/null
attachment=$(platter attach ours --to vm -o json)
id=$(jq -r .id <<<"$attachment")
mapfile -t arguments < <(jq -r '.qemu.arguments[]' <<<"$attachment")

qemu-img create -q -f qcow2 "$TMP/control.img" 256M
qemu-storage-daemon --blockdev "driver=file,node-name=file,filename=$TMP/control.img" \
    --blockdev driver=qcow2,node-name=control,file=file \
    --export "type=vhost-user-blk,id=e,node-name=control,writable=on,addr.type=unix,addr.path=$TMP/control.sock" \
    >"$TMP/control.log" 2>&1 &
control_pid=$!
cleanup_fn kill -9 "$control_pid"
for ((i = 0; i < 300; i++)); do
    [ ! -S "$TMP/control.sock" ] || break
    sleep 0.1
done

vm_start "${arguments[@]}" -chardev "socket,id=control,path=$TMP/control.sock,reconnect=1" \
    -device vhost-user-blk-pci,chardev=control,num-queues=1
[ "$(vm_run 'cat /sys/block/vda/queue/write_cache')" = 'write back' ] || fail "the guest would send no flushes"

# kill_under_guest NAME DEVICE PID: sets TOLD to the last piece whose fsync returned. The guest goes on when the server
# is gone and then hangs in its fsync; a dd of another round is not in the way.
kill_under_guest() {
    local name=$1 line until=$((20 + RANDOM % 60))
    vm_run "{ i=0; while dd if=/tmp/$name-\$i of=$2 bs=$PIECE seek=\$i count=1 conv=notrunc,fsync 2>/dev/null; do
            echo told \$i; i=\$((i + 1))
            yes \"piece \$i of $name \" | head -c $PIECE >/tmp/$name-\$i; done >/dev/hvc0; } &
        true" >/dev/null
    TOLD=-1
    while [ "$TOLD" -lt "$until" ] && IFS= read -r -t 60 line <&"$VM_CHAN_OUT"; do
        [[ ! $line =~ ^told\ ([0-9]+) ]] || TOLD=${BASH_REMATCH[1]}
    done
    [ "$TOLD" -ge "$until" ] || fail "the guest told only $TOLD fsyncs of $name"
    kill -KILL "$3"
    wait "$3" 2>/dev/null || true
    while IFS= read -r -t 2 line <&"$VM_CHAN_OUT"; do # told before the kill
        [[ ! $line =~ ^told\ ([0-9]+) ]] || TOLD=${BASH_REMATCH[1]}
    done
}

# count_lost NAME IMAGE: of the pieces 0 to TOLD
count_lost() {
    local i lost=0
    for ((i = 0; i < 300; i++)); do # the kernel may still be ending requests of the dead process, which hold its locks
        ! qemu-io -r -c quit "$2" >/dev/null 2>&1 || break
        sleep 0.1
    done
    qemu-img convert -f qcow2 -O raw "$2" "$TMP/$1.raw"
    for ((i = 0; i <= TOLD; i++)); do
        cmp -s <(stamp "$1" "$i") <(dd if="$TMP/$1.raw" bs="$PIECE" skip="$i" count=1 2>/dev/null) || lost=$((lost + 1))
    done
    echo "$lost"
}

# The first piece has no predecessor that makes it.
for name in ours control; do vm_run "yes 'piece 0 of $name ' | head -c $PIECE >/tmp/$name-0" >/dev/null; done
kill_under_guest control /dev/vdb "$control_pid"
control_told=$TOLD
kill_under_guest ours /dev/vda "$(jq -r .server_pid <<<"$attachment")"
ours_told=$TOLD
vm_run true >/dev/null || fail "the guest did not survive"
kill -9 "$VM_PID"
wait "$VM_PID" 2>/dev/null || true

for ((i = 0; ; i++)); do
    [ "$(platter attachment show "$id" -o json | jq -r .state)" != failed ] || break
    [ "$i" -lt 300 ] || fail "the attachment is not reported as failed"
    sleep 0.1
done
platter detach "$id" >/dev/null
image=$(echo "$PLATTERD_DIR"/pool-default/lay-*.img)
TOLD=$ours_told
lost=$(count_lost ours "$image")
status=$(status_of qemu-img check "$image" 2>"$TMP/check")
[ "$status" = 0 ] || [ "$status" = 3 ] || fail "qemu-img check says $status: $(cat "$TMP/check")"
echo "ours: $((ours_told + 1)) fsyncs told, $lost lost"
TOLD=$control_told
control_lost=$(count_lost control "$TMP/control.img")
echo "control: $((control_told + 1)) fsyncs told, $control_lost lost"
[ "$lost" = 0 ] || fail "what the guest had on disk is lost"
[ "$control_lost" -gt 0 ] || fail "the control lost nothing: this test sees no loss"
platter volume delete ours --yes >/dev/null
stop_platterd
