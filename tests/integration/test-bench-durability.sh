#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# platter bench durability: every shape of volume is tried without loss and left alone; a planted fault is reported.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
requires jq --version
export PLATTER_CRASH_JOBS=1 # which states are tried depends on it, and nothing else
start_platterd
make_pool

bench() { platter bench durability "$@" --states 200 --seed 3; }
value() { jq -r "$1" "$TMP/json"; }
# tried VOLUME EXPRESSION VALUE...: no loss, and the tried shape is the volume's
tried() {
    local volume=$1
    shift
    bench "$volume" -o json >"$TMP/json" || fail "$volume: $(cat "$TMP/json")"
    [ "$(value .result)" = ok ] && [ "$(value .seed)" = 3 ] || fail "$volume: $(cat "$TMP/json")"
    [ "$(value '[.parts[] | .part] | join(" ")')" = "states faults schedules" ] || fail "$volume: parts"
    [ "$(value '[.parts[] | .tried > 0] | all')" = true ] || fail "$volume: nothing was tried: $(cat "$TMP/json")"
    for ((; $#; )); do
        [ "$(value "$1")" = "$2" ] || fail "$volume: $1 is $(value "$1"), not $2"
        shift 2
    done
}
platter volume create raw --size 8M --format raw -o name >/dev/null
platter volume create v2 --size 8M --version 2 --cluster-size 4096 -o name >/dev/null
platter volume create ext --size 8M --extended-l2 --refcount-bits 32 -o name >/dev/null
platter volume create snapped --size 8M -o name >/dev/null
platter snapshot create snapped@one -o name >/dev/null
before=$(find "$PLATTERD_DIR/pool-default" -type f -printf '%p %s %T@\n' | sort)
tried raw .shape.format raw .shape.parent false
tried v2 .shape.version 2 .shape.cluster_size 4096 .shape.parent false
tried ext .shape.extended_l2 true .shape.refcount_bits 32
tried snapped .shape.parent true .shape.version 3
[ "$(find "$PLATTERD_DIR/pool-default" -type f -printf '%p %s %T@\n' | sort)" = "$before" ] || fail "the pool was touched"

# For people; the same seed does the same.
bench raw --progress jsonl >"$TMP/table" 2>"$TMP/progress"
grep -Eq '^states +[0-9]+ +0 +0 +0 +0 .* ok$' "$TMP/table" || fail "the table: $(cat "$TMP/table")"
grep -Eq '^Seed +3$' "$TMP/table" || fail "no seed: $(cat "$TMP/table")"

# It can fail, and says how to do that again.
status=$(status_of platter bench durability snapped --states 2000 --seed 1 --plant no-barrier 2>"$TMP/error")
[ "$status" = 1 ] || fail "no-barrier is not reported: $status, $(cat "$TMP/error")"
if bench v2 --plant drop-flush -o json >"$TMP/json" 2>"$TMP/error"; then fail "drop-flush is not reported"; fi
[ "$(value '.lost > 0')" = true ] || fail "nothing lost: $(cat "$TMP/json")"
grep -q -- 'try: platter bench durability v2 --states 200 --seed 3 --plant drop-flush' "$TMP/error" || fail "$(cat "$TMP/error")"
[ "$(status_of platter bench durability none)" = 3 ] || fail "a volume that is not there"
stop_platterd
