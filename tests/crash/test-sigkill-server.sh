#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The block server is killed under a writer, again and again on the same volume: what a flush acknowledged is there,
# nothing foreign is, and qcow2 has leaks at most. (A raw volume as a device has no server: the kernel reads the file.)
. "$(dirname "$0")/sigkill.sh"
requires test "$(id -u)" = 0
requires losetup --find
ROUNDS=${SIGKILL_ROUNDS:-10}
start_platterd
make_pool

# kill_rounds FORMAT ATTACH ARGUMENTS...
kill_rounds() {
    local format=$1 round
    shift
    JOURNAL=$TMP/journal
    rm -f "$JOURNAL"
    platter volume create v --size 64M --format "$format" -o name >/dev/null
    for ((round = 0; round <= ROUNDS; round++)); do
        attach_again v "$@"
        if ((round)); then
            ack_writer verify "$TARGET" "$JOURNAL" >"$TMP/verdict" ||
                fail "$format, $*, round $round: $(cat "$TMP/verdict")"
        fi
        ((round < ROUNDS)) || break
        kill_under_writer "$TARGET"
        check_layers "$format"
    done
    echo "$format, $*: $ROUNDS kills; the last: $(cat "$TMP/verdict")"
    platter detach "$ID" >/dev/null
    platter volume delete v --yes >/dev/null
}

kill_rounds qcow2 vm --export nbd
kill_rounds raw vm --export nbd
kill_rounds qcow2 device
stop_platterd
