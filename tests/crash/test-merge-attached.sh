#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Layers of an attached volume are being merged when platterd dies, at each point of it, or the block server, or both: the volume
# holds what it held, the merge comes to its end, or can when the volume is detached.
. "$(dirname "$0")/jobs.sh"
requires qemu-img --version
start_platterd
make_pool
POOL=$PLATTERD_DIR/pool-default

layers_of() { platter volume show v -o json | jq '.layers | length'; }
attachment() { platter attachment list -o json | jq -r ".[0].$1"; }
write() { qemu-io -f raw "$@" -c flush "$uri" >/dev/null; }
# Three layers, the uppermost written to after the last snapshot. `expected` is what the volume holds.
deep() {
    platter volume create v --size 16M --filesystem none -o name >/dev/null
    platter attach v --to vm --export nbd -o name >/dev/null
    uri="nbd+unix:///v?socket=$(attachment socket)"
    server=$(attachment server_pid)
    write -c "write -P 11 0 12M"
    platter snapshot create v@s1 -o name >/dev/null
    write -c "write -P 22 1M 4M" -c "write -P 23 10000 3000" -c "write -z 6M 1000k" -c "write -P 24 13M 5k"
    platter snapshot create v@s2 -o name >/dev/null
    write -c "write -P 33 2M 10k"
    rm -f "$TMP"/*.raw
    qemu-img convert -f raw -O raw "$uri" "$TMP/expected.raw"
    platter volume export v@s2 "$TMP/s2.raw" --format raw -o name >/dev/null
}
drop() { platter snapshot delete v@s1 --yes -o name; }
platterd_ended() {
    local i
    for ((i = 0; i < 300; i++)); do kill -0 "$PLATTERD_PID" 2>/dev/null || return 0; sleep 0.1; done
    fail "platterd did not crash"
}
end_server() {
    kill -9 "$server"
    while [ -e "/proc/$server/fd/0" ]; do sleep 0.05; done
}
drop_and_end_server() {
    drop || true
    platterd_ended
    end_server
}

attached_still() { # POINT: the server serves on, and takes writes
    [ "$(attachment state)" = attached ] || fail "$1: the attachment is $(attachment state)"
    write -c "write -P 33 2M 10k"
    qemu-img convert -f raw -O raw "$uri" "$TMP/now.raw"
    cmp "$TMP/expected.raw" "$TMP/now.raw" || fail "$1: the volume changed"
}
detached() { # POINT: then it can be merged in any case
    local image
    platter detach "$(attachment id)" -o name >/dev/null
    settle
    [ "$(layers_of)" = 2 ] || fail "$1: $(layers_of) layers: $(platter job list) $(tail -n 30 "$PLATTERD_DIR/log")"
    platter volume check v >"$TMP/check" || fail "$1: $(cat "$TMP/check")"
    for image in "$POOL"/lay-*.img; do # status 3: leaks, which a killed server leaves in its top
        qemu-img check -q "$image" >/dev/null || [ $? = 3 ] || fail "$1: $image is damaged"
    done
    rm -f "$TMP/now.raw"
    platter volume export v "$TMP/now.raw" --format raw -o name >/dev/null
    cmp "$TMP/expected.raw" "$TMP/now.raw" || fail "$1: the volume changed"
    rm -f "$TMP/now.raw"
    platter volume export v@s2 "$TMP/now.raw" --format raw -o name >/dev/null
    cmp "$TMP/s2.raw" "$TMP/now.raw" || fail "$1: the snapshot changed"
    platter volume delete v --snapshots --yes >/dev/null
    settle
    [ -z "$(find "$POOL" -name 'lay-*')" ] || fail "$1: left over: $(ls "$POOL")"
}

for point in share share:after switch switch:after swap swap:after; do
    deep
    crash_at "volume-merge.$point" drop
    [ "$(layers_of)" = 2 ] || fail "$point: $(layers_of) layers: $(platter job list) $(tail -n 30 "$PLATTERD_DIR/log")"
    attached_still "$point"
    detached "$point"
    echo "ok $point"
done
# The server with it.
for point in share:after switch:after swap:after; do
    deep
    crash_at "volume-merge.$point" drop_and_end_server
    [ "$(attachment state)" = failed ] || fail "$point: the attachment is $(attachment state)"
    detached "$point and the server"
    echo "ok $point and the server"
done
# While the worker writes: first platterd, then the server alone.
stop_platterd
printf '[platterd]\nmerge_rate = 1\n' >"$PLATTERD_DIR/etc/platterd.conf"
start_platterd
deep
drop >/dev/null
under_way() {
    local i
    for ((i = 0; i < 300; i++)); do
        ! platter job list -o json | jq -e 'any(.[]; .kind == "volume-merge" and .state == "running" and .progress.done > 1)' \
            >/dev/null || return 0
        sleep 0.1
    done
    fail "no merge runs: $(platter job list)"
}
under_way
kill_platterd
qemu-img convert -f raw -O raw "$uri" "$TMP/now.raw"
cmp "$TMP/expected.raw" "$TMP/now.raw" || fail "a half merge is seen"
start_platterd
under_way
end_server
for ((i = 0; i < 300; i++)); do [ "$(attachment state)" != failed ] || break; sleep 0.1; done
[ "$i" -lt 300 ] || fail "the attachment is $(attachment state)"
detached "while the worker wrote"
stop_platterd
