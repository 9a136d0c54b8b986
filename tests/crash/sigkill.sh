# SPDX-License-Identifier: Apache-2.0
# Sourced by the tests that kill block servers: rounds of attach, verify, write, SIGKILL to the server at a random
# moment, detach and check. The journal of what was acknowledged is ack_writer's (tests/tools).
. "$(dirname "${BASH_SOURCE[0]}")/../lib/functions.sh"
. "$PLATTER_SOURCE/tests/lib/platterd.sh"
PATH=$PLATTER_BUILD/tests:$PATH
SIGKILL_SEED=${SIGKILL_SEED:-$RANDOM}
RANDOM=$SIGKILL_SEED
sigkill_failed() { [ "$?" = 0 ] || echo "SIGKILL_SEED=$SIGKILL_SEED" >&2; }
trap 'sigkill_failed; run_cleanups' EXIT

# within_30s COMMAND...: until it succeeds
within_30s() {
    local until=$((SECONDS + 30))
    until "$@"; do
        ((SECONDS < until)) || fail "waited 30 s for: $*"
        sleep 0.02
    done
}

# attach_again VOLUME KIND [ARGUMENTS...]: sets ID, SERVER and TARGET (as ack_writer takes it)
attach_again() {
    local attachment
    attachment=$(platter attach "$1" --to "${@:2}" -o json)
    ID=$(jq -r .id <<<"$attachment")
    SERVER=$(jq -r .server_pid <<<"$attachment")
    TARGET=$(jq -r 'if .kind == "device" then "file:" + .device else "nbd:" + .socket end' <<<"$attachment")
    [[ $(readlink "/proc/$SERVER/exe") == */platter-blk ]] || fail "$SERVER is no platter-blk"
}

flushed_more_than() { [ "$(ack_writer flushes "$JOURNAL" 2>/dev/null || echo 0)" -gt "$1" ]; }
is_failed() { [ "$(platter attachment show "$ID" -o json | jq -r .state)" = failed ]; }

# kill_under_writer TARGET: the writer is at work, at least one flush of it is acknowledged, then the server dies.
kill_under_writer() {
    local before writer
    before=$(ack_writer flushes "$JOURNAL" 2>/dev/null || echo 0)
    ack_writer write "$1" "$JOURNAL" --seed "$SIGKILL_SEED" &
    writer=$!
    cleanup_fn kill -9 "$writer"
    within_30s flushed_more_than "$before"
    sleep "0.$(printf '%03d' $((RANDOM % 500)))" # any moment will do
    kill -KILL "$SERVER"
    within_30s is_failed # and no successor
    # A writer on a device hangs until the detach ends its requests.
    platter detach "$ID" >/dev/null
    wait "$writer" || fail "the writer ended with $?"
}

# check_layers FORMAT: leaks at most. The kernel may still be ending requests of the dead process, which hold its locks.
check_layers() {
    local image status
    for image in "$PLATTERD_DIR"/pool-default/lay-*.img; do
        within_30s qemu-io -r -f "$1" -c quit "$image" >/dev/null 2>&1
        [ "$1" = qcow2 ] || continue
        status=$(status_of qemu-img check "$image" 2>"$TMP/check")
        [ "$status" = 0 ] || [ "$status" = 3 ] || fail "qemu-img check says $status: $(cat "$TMP/check")"
    done
}
