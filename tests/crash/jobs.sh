# SPDX-License-Identifier: Apache-2.0
# Sourced by the job crash tests: platterd kills itself at a named point of a job, is started again, and then
# everything on the host is either as before the job or as after it, with nothing left over.
. "$(dirname "${BASH_SOURCE[0]}")/../lib/functions.sh"
. "$(dirname "${BASH_SOURCE[0]}")/../lib/platterd.sh"
requires test -e /dev/fuse
requires test -e /dev/loop-control
requires jq --version
[ "$(id -u)" = 0 ] || skip "needs root"
MNT=$TMP/mnt
mkdir -p "$MNT"
umount_mnt() { umount -q "$MNT" || true; }
cleanup_fn umount_mnt

# What is on the host under our names, one thing a line, without ids.
footprint() {
    local dir=$PLATTERD_DIR pid
    find "$dir"/pool-* -type f -printf '%f\n' | sed -E 's/[0-9a-f]{16}/ID/' | sort
    find "$dir/run/blk" "$dir/run/fuse" "$dir/run/vm" -mindepth 1 -printf 'run %f\n' | sed -E 's/[0-9a-f]{16}/ID/' | sort
    for loop in /sys/block/loop*/loop/backing_file; do
        { grep -q "^$dir/" "$loop" && echo loop; } 2>/dev/null || true
    done
    grep -F " $TMP" /proc/self/mountinfo | sed -E 's/.* - ([a-z.0-9]+) .*/mount \1/' | sort || true
    for pid in $(pgrep -x platter-blk || true); do
        { grep -zq "^PLATTER_TEST=$TMP$" "/proc/$pid/environ" && echo "process platter-blk"; } 2>/dev/null || true
    done
    find "$TMP" -maxdepth 1 -name '.platter-*' -printf 'temporary\n'
    find "$TMP" -maxdepth 1 -name 'out.*' -printf '%f\n'
}
export PLATTER_TEST=$TMP # marks the processes of this test

active_jobs() { platter job list -o json | jq '[.[] | select(.state == "queued" or .state == "running")] | length'; }
# Wait until no job is unfinished. One may leave another behind (a merge), so it is asked more than once; a job waits for
# itself.
settle() {
    local id i
    for ((i = 0; i < 20; i++)); do
        for id in $(platter job list -o json | jq -r '.[] | select(.state == "queued" or .state == "running") | .id'); do
            platter job wait "$id" --progress none >/dev/null 2>&1 || true
        done
        [ "$(active_jobs)" != 0 ] || return 0
    done
    fail "a job never ended"
}

# crash_at POINT COMMAND...: run COMMAND against a platterd that dies at POINT, then start it again and let jobs end.
crash_at() {
    local point=$1 status=0
    shift
    stop_platterd
    PLATTERD_UNDER=(env "PLATTER_CRASH_AT=$point")
    start_platterd
    PLATTERD_UNDER=()
    "$@" >"$TMP/out.log" 2>&1 && status=0 || status=$?
    rm -f "$TMP/out.log"
    local i
    for ((i = 0; i < 100; i++)); do kill -0 "$PLATTERD_PID" 2>/dev/null || break; sleep 0.1; done
    [ "$i" -lt 100 ] || fail "$point: platterd did not crash there ($*: status $status)"
    { wait "$PLATTERD_PID"; } 2>/dev/null && fail "$point: platterd ended by itself"
    PLATTERD_PID=
    start_platterd
    settle
    no_orphans "$point"
}

# No event may have told of an orphan since the test began.
no_orphans() {
    local orphans
    orphans=$(platter event follow --no-follow -o json | jq -c 'select(.kind == "orphan.found")' | tail -n 3)
    [ -z "$orphans" ] || fail "$1: orphans: $orphans"
}

# expect_state POINT BEFORE AFTER: the footprint is one of the two.
expect_state() {
    local now
    now=$(footprint)
    [ "$now" = "$2" ] || [ "$now" = "$3" ] || fail "$1: neither done nor undone
--- before
$2
--- after
$3
--- now
$now"
}

# matrix KIND "STEPS" PREPARE COMMAND CLEAN: functions. For every point: PREPARE, COMMAND with the crash, the host is
# as before or as after, COMMAND again brings it to `after` unless it is there, CHECK (if there is one), CLEAN.
matrix() {
    local kind=$1 steps=$2 prepare=$3 command=$4 clean=$5 check=${6:-true} base before after now step point points=()
    base=$(footprint)
    "$prepare"
    before=$(footprint)
    "$command" >"$TMP/out.log" 2>&1 || fail "$kind: $(cat "$TMP/out.log")"
    rm -f "$TMP/out.log"
    after=$(footprint)
    "$check"
    "$clean"
    [ "$(footprint)" = "$base" ] || fail "$kind: not even without a crash does it clean up: $(footprint)"
    points+=("$kind.begin" "$kind.finish" "$kind.finish:after")
    for step in $steps; do points+=("$kind.$step" "$kind.$step:after"); done
    for step in ${UNDO_STEPS:-}; do points+=("$kind.$step:fail,$kind.${step}:undo" "$kind.$step:fail,$kind.finish"); done
    for point in "${points[@]}"; do
        "$prepare"
        [ "$(footprint)" = "$before" ] || fail "$point: prepared differently: $(footprint)"
        crash_at "$point" "$command"
        expect_state "$point" "$before" "$after"
        if [ "$before" = "$after" ] || [ "$(footprint)" = "$before" ]; then
            "$command" >"$TMP/out.log" 2>&1 || fail "$point: again: $(cat "$TMP/out.log")"
            rm -f "$TMP/out.log"
            now=$(footprint)
            [ "$now" = "$after" ] || fail "$point: the second time: $now"
        fi
        "$check"
        "$clean"
        now=$(footprint)
        [ "$now" = "$base" ] || fail "$point: left over: $now"
        echo "ok $point"
    done
}
