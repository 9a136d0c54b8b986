#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Events: numbered without gaps, resumed where a reader stopped, followed across a restart, ended by a stop.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
requires jq --version
start_platterd
make_pool

platter event follow -o json >"$TMP/followed" &
follower=$!
cleanup_fn kill "$follower"
for i in 1 2 3 4; do platter volume create "v$i" --size 1M -o name >/dev/null; done
platter event follow --no-follow -o json >"$TMP/all"
[ -s "$TMP/all" ] || fail "no events"
jq -es 'map(.seq) as $s | $s == ($s | sort) and ($s | unique | length) == ($s | length)' "$TMP/all" >/dev/null ||
    fail "the sequence numbers do not rise"
for i in 1 2 3 4; do platter volume show "v$i" -o json | jq -r .id; done >"$TMP/ids"
while read -r id; do grep -q "$id" "$TMP/all" || fail "no event names $id"; done <"$TMP/ids"

# Any place to resume from gives exactly the rest.
count=$(wc -l <"$TMP/all")
for ((n = 1; n <= count; n += 3)); do
    seq=$(sed -n "${n}p" "$TMP/all" | jq .seq)
    platter event follow --no-follow --after "$seq" -o json >"$TMP/rest"
    diff <(tail -n +$((n + 1)) "$TMP/all") "$TMP/rest" >/dev/null || fail "resuming after $seq lost or repeated events"
done

# A stop ends the stream at once; the follower comes back to the next platterd and misses nothing.
stop_platterd
start_platterd
platter volume delete v1
platter event follow --no-follow -o json >"$TMP/all"
for ((i = 0; i < 200; i++)); do
    if [ "$(tail -n 1 "$TMP/followed")" = "$(tail -n 1 "$TMP/all")" ]; then break; fi
    sleep 0.1
done
diff "$TMP/all" "$TMP/followed" || fail "the follower saw something else"

# A reader that takes nothing holds up nobody, and a stop ends it.
mkfifo "$TMP/slow"
curl -sN --unix-socket "$PLATTER_SOCKET" 'http://platter/v1/events?follow=1' >"$TMP/slow" &
slow=$!
cleanup_fn kill "$slow"
exec 9<"$TMP/slow"
for i in 5 6 7; do platter volume create "v$i" --size 1M -o name >/dev/null; done
stop_platterd
exec 9<&-
