#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Snapshots of several volumes at one point: mounted, under NBD and detached ones; a writer that goes from volume to volume
# in turn is never ahead in the later one; all or none of what is asked for.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
requires test -e /dev/fuse
requires jq --version
requires /usr/bin/python3 -c 'import nbd'
requires qemu-io --version
[ "$(id -u)" = 0 ] || skip "needs root"
mkdir "$TMP/a" "$TMP/b"
WRITER=
take_down() {
    [ -z "$WRITER" ] || { kill "$WRITER" && wait "$WRITER"; } 2>/dev/null || true
    umount -q "$TMP/a" || true
    umount -q "$TMP/b" || true
}
cleanup_fn take_down
start_platterd
make_pool
POOL=$PLATTERD_DIR/pool-default
shown() { platter snapshot show "$1" -o json | jq -r ".$2"; }
count() { platter snapshot list -o json | jq length; }

platter volume create m --size 64M --filesystem ext4 -o name >/dev/null
for volume in d v w; do platter volume create $volume --size 16M --filesystem none -o name >/dev/null; done
platter mount m "$TMP/a" >/dev/null
for volume in v w; do
    declare "uri_$volume=nbd+unix:///$volume?socket=$(platter attach $volume --to vm --export nbd -o json | jq -r .socket)"
done

# Detached, mounted, under NBD, together.
echo one >"$TMP/a/mark"
qemu-io -f raw "$uri_v" -c 'write -P 1 1M 64k' >/dev/null
platter snapshot create m@s1 v@s1 d@s1 --freeze -o json >"$TMP/made.json" || fail "create"
[ "$(jq -r '.[].name' "$TMP/made.json" | tr '\n' ' ')" = "m@s1 v@s1 d@s1 " ] || fail "made: $(cat "$TMP/made.json")"
[ "$(jq -r '.[].state' "$TMP/made.json" | sort -u)" = available ] || fail "made: $(cat "$TMP/made.json")"
[ "$(shown m@s1 consistency) $(shown v@s1 consistency) $(shown d@s1 consistency)" = "filesystem crash detached" ] ||
    fail "consistency: $(shown m@s1 consistency) $(shown v@s1 consistency) $(shown d@s1 consistency)"
group=$(shown m@s1 group)
[[ $group == grp-* ]] && [ "$(shown v@s1 group)" = "$group" ] && [ "$(shown d@s1 group)" = "$group" ] || fail "group: $group"
# The same again is there already; in another company it is not the same.
[ "$(platter snapshot create d@s1 m@s1 v@s1 --freeze -o json | jq -r '.[0].group')" = "$group" ] || fail "made twice"
echo two >"$TMP/a/mark"
qemu-io -f raw "$uri_v" -c 'write -P 2 1M 64k' -c 'read -P 2 1M 64k' >/dev/null
platter mount m@s1 "$TMP/b" >/dev/null
[ "$(cat "$TMP/b/mark")" = one ] || fail "m@s1 holds $(cat "$TMP/b/mark")"
platter unmount "$TMP/b" >/dev/null
platter volume export v@s1 "$TMP/v1.raw" --format raw -o name >/dev/null
qemu-io -r -f raw "$TMP/v1.raw" -c 'read -P 1 1M 64k' >"$TMP/look" && ! grep -q failed "$TMP/look" || fail "v@s1: $(cat "$TMP/look")"

# Refusals: nothing is made of any.
before=$(count)
layers=$(find "$POOL" -name 'lay-*' | wc -l)
refuses 'named twice' platter snapshot create v@x v@y
refuses 'named twice' platter snapshot create v@x d@x v@x
refuses "there is a snapshot 'v@s1' already" platter snapshot create d@x v@s1
refuses 'already' platter snapshot create d@s1 m@s1
refuses "no volume 'nobody'" platter snapshot create d@x nobody@x
refuses 'not VOLUME@|cannot be a snapshot' platter snapshot create d@x v
refuses 'no file system to freeze' platter snapshot create d@x v@x --freeze
platter volume create r --size 64M --format raw --filesystem ext4 -o name >/dev/null
platter mount r "$TMP/b" >/dev/null
refuses 'straight over its file' platter snapshot create d@x r@x v@x
platter unmount "$TMP/b" >/dev/null
platter volume delete r --yes >/dev/null
[ "$(count)" = "$before" ] && [ "$(find "$POOL" -name 'lay-*' | wc -l)" = "$layers" ] || fail "a refusal made something"

# n to v, then n to w, over and over, each acknowledged before the next: w is never ahead of v, nor v by more than one.
/usr/bin/python3 -c "
import os, nbd
a, b = nbd.NBD(), nbd.NBD()
a.connect_uri('$uri_v')
b.connect_uri('$uri_w')
n = 0
while not os.path.exists('$TMP/enough'):
    n += 1
    block = n.to_bytes(8, 'little') * 512
    a.pwrite(block, 4096 * (n % 100))
    a.pwrite(block, 8 << 20)
    b.pwrite(block, 8 << 20)
    if n == 10:
        open('$TMP/going', 'w').close()
" 2>"$TMP/writer.log" &
WRITER=$!
for ((i = 0; i < 600; i++)); do [ ! -e "$TMP/going" ] || break; sleep 0.1; done
for i in 1 2 3 4 5; do platter snapshot create "w@t$i" "d@t$i" "v@t$i" --progress none -o name >/dev/null; done
touch "$TMP/enough"
wait "$WRITER" || fail "the writer: $(cat "$TMP/writer.log")"
WRITER=
number() { # of a snapshot
    rm -f "$TMP/n.raw"
    platter volume export "$1" "$TMP/n.raw" --format raw -o name >/dev/null
    od -A n -t u8 -j 8388608 -N 8 "$TMP/n.raw" | tr -d ' '
}
last=0
for i in 1 2 3 4 5; do
    v=$(number "v@t$i") w=$(number "w@t$i")
    [ "$w" -le "$v" ] && [ "$v" -le $((w + 1)) ] && [ "$v" -ge "$last" ] || fail "t$i: v has $v, w $w, before $last"
    last=$v
done
[ "$last" -ge 10 ] || fail "the writer did nothing"

platter unmount "$TMP/a" >/dev/null
for volume in v w; do platter detach "$(platter attachment list -o json | jq -r ".[] | select(.volume == \"$volume\") | .id")" >/dev/null; done
for image in "$POOL"/lay-*.img; do qemu-img check -q "$image" || fail "$image is damaged"; done
for volume in m d v w; do platter volume delete $volume --snapshots --yes >/dev/null; done
[ -z "$(find "$POOL" -name 'lay-*')" ] || fail "left over: $(ls "$POOL")"
stop_platterd
