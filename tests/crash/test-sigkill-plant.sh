#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Controls of sigkill-server: it must report a volume whose flushes were answered without being done (a proxy before the
# server keeps them to itself), one that holds what nobody wrote, and one that fell back to an earlier state.
. "$(dirname "$0")/sigkill.sh"
requires nbdkit --filter=fua --version
start_platterd
make_pool
platter volume create v --size 64M --format qcow2 -o name >/dev/null

# finds PATTERN: the verdict on what is attached now must be bad, for this reason
finds() {
    local status
    status=$(status_of ack_writer verify "$TARGET" "$JOURNAL" 2>"$TMP/findings")
    [ "$status" != 2 ] || fail "cannot verify: $(cat "$TMP/findings")"
    [ "$status" = 1 ] && grep -q "$1" "$TMP/findings"
}

# The server commits by itself now and then, and what it committed is not lost: some round finds it out.
JOURNAL=$TMP/journal
for ((round = 1; ; round++)); do
    [ "$round" -le 10 ] || fail "flushes that were never done went unnoticed for 10 kills"
    attach_again v vm --export nbd
    nbdkit --foreground --unix "$TMP/liar" --pidfile "$TMP/liar.pid" --filter=fua \
        nbd socket="${TARGET#nbd:}" export=v fuamode=discard 2>"$TMP/liar.log" &
    liar=$!
    cleanup_fn kill "$liar"
    within_30s test -s "$TMP/liar.pid"
    kill_under_writer "nbd:$TMP/liar"
    kill "$liar"
    wait "$liar" || true
    rm -f "$TMP/liar" "$TMP/liar.pid"
    check_layers qcow2
    attach_again v vm --export nbd
    if finds 'lost: older than its last flush'; then break; fi
    platter detach "$ID" >/dev/null
done
echo "flushes kept back: found after $round kills: $(head -n 1 "$TMP/findings")"
platter detach "$ID" >/dev/null

# An honest round, then a foreign block, then the image as it was before.
JOURNAL=$TMP/journal-2
platter volume delete v --yes >/dev/null
platter volume create v --size 64M --format qcow2 -o name >/dev/null
image=$(echo "$PLATTERD_DIR"/pool-default/lay-*.img)
cp "$image" "$TMP/earlier"
attach_again v vm --export nbd
kill_under_writer "$TARGET"
check_layers qcow2
qemu-io -f qcow2 -c 'write -q -P 0x55 0 4096' "$image"
attach_again v vm --export nbd
finds 'block 0 sector 0: foreign data' || fail "a foreign block went unnoticed"
platter detach "$ID" >/dev/null
cp "$TMP/earlier" "$image"
attach_again v vm --export nbd
finds 'lost: older than its last flush' || fail "an image of an earlier time went unnoticed"
echo "earlier image: found: $(head -n 1 "$TMP/findings")"
platter detach "$ID" >/dev/null
stop_platterd
