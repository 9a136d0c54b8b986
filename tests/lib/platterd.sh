# SPDX-License-Identifier: Apache-2.0
# Sourced after functions.sh: a private platterd with its own state, sockets and pool. Everything that it attached is taken
# down before it is stopped; it is ended by its process id.
PLATTERD_DIR=$TMP/platterd
export PLATTER_SOCKET=$PLATTERD_DIR/run/platter.sock
PLATTERD_PID=

# start_platterd [ARGUMENTS...]: again after stop_platterd or kill_platterd finds the same state. PLATTERD_CONFIG names a
# configuration file; the default is an empty one, so nothing of the host's is read.
start_platterd() {
    mkdir -p "$PLATTERD_DIR"/{state,run,etc}
    [ -e "$PLATTERD_DIR/etc/platterd.conf" ] || : >"$PLATTERD_DIR/etc/platterd.conf"
    "${PLATTERD_UNDER[@]}" platterd --config "${PLATTERD_CONFIG:-$PLATTERD_DIR/etc/platterd.conf}" \
        --state-dir "$PLATTERD_DIR/state" --runtime-dir "$PLATTERD_DIR/run" "$@" 2>>"$PLATTERD_DIR/log" &
    PLATTERD_PID=$!
    wait_platterd
}
PLATTERD_UNDER=()

# Ready means: it answers. Gives up when the process has ended, or after a minute.
wait_platterd() {
    local i
    for ((i = 0; i < 600; i++)); do
        if platter version >/dev/null 2>&1; then return 0; fi
        if ! kill -0 "$PLATTERD_PID" 2>/dev/null; then
            cat "$PLATTERD_DIR/log" >&2
            fail "platterd ended before it was ready"
        fi
        sleep 0.1
    done
    fail "platterd does not answer"
}

# stop_platterd: as systemd does, and it must end well. Attached volumes stay attached.
stop_platterd() {
    local pid=$PLATTERD_PID status=0
    [ -n "$pid" ] || return 0
    PLATTERD_PID=
    kill -TERM "$pid"
    wait "$pid" || status=$?
    [ "$status" = 0 ] || { cat "$PLATTERD_DIR/log" >&2; fail "platterd ended with status $status"; }
}

# kill_platterd: as a crash does.
kill_platterd() {
    local pid=$PLATTERD_PID
    PLATTERD_PID=
    kill -KILL "$pid"
    wait "$pid" 2>/dev/null || true
}

# make_pool [NAME]: a pool beside the state, for tests that need one.
make_pool() {
    mkdir -p -m 0755 "$PLATTERD_DIR/pool-${1:-default}"
    platter pool create "${1:-default}" "$PLATTERD_DIR/pool-${1:-default}" -o name >/dev/null
}

# status_of COMMAND...: its exit status on standard output, its own output on standard error.
status_of() {
    local status=0
    "$@" >&2 || status=$?
    echo "$status"
}

# api METHOD PATH [JSON]: the answer's body, then its status on a line of its own.
api() {
    curl -sS --max-time 30 --unix-socket "$PLATTER_SOCKET" -X "$1" ${3+--data-binary "$3"} -w '\n%{http_code}\n' "http://platter$2"
}

# api_refuses STATUS CODE METHOD PATH [JSON]: exactly this status and code word.
api_refuses() {
    local status=$1 code=$2 out
    shift 2
    out=$(api "$@")
    [ "$(tail -n 1 <<<"$out")" = "$status" ] || fail "$*: expected $status, got: $out"
    [ "$(head -n 1 <<<"$out" | jq -r .error.code)" = "$code" ] || fail "$*: expected code $code, got: $out"
}

platterd_cleanup() {
    local id i
    [ -d "$PLATTERD_DIR" ] || return 0
    if [ -z "$PLATTERD_PID" ] && ls "$PLATTERD_DIR"/run/blk/*.sock; then start_platterd; fi
    if [ -n "$PLATTERD_PID" ]; then
        for id in $(platter attachment list -o name); do platter detach "$id" --timeout 20; done
        kill -TERM "$PLATTERD_PID"
        for ((i = 0; i < 100; i++)); do kill -0 "$PLATTERD_PID" || break; sleep 0.1; done
        kill -KILL "$PLATTERD_PID"
        wait "$PLATTERD_PID"
    fi
}
cleanup_fn platterd_cleanup
