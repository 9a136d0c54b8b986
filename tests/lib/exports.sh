# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Exports for tests, on top of functions.sh: one server at a time, asked by lines.

EXPORT_SERVER=$PLATTER_BUILD/tests/export-server

# export_start COMMAND...: run a server that says "ready", answers lines and ends at "quit" or end of file.
export_start() {
    coproc EXPORT { exec "$@"; }
    EXPORT_PID_KEPT=$EXPORT_PID
    cleanup_fn export_abandon "$EXPORT_PID"
    [[ $(export_answer) == ready ]] || fail "the server did not start: $*"
}
export_answer() {
    local line
    read -r -t 30 -u "${EXPORT[0]}" line || fail "the server does not answer"
    echo "$line"
}
# export_ask LINE: prints the answer.
export_ask() {
    echo "$1" >&"${EXPORT[1]}"
    export_answer
}
# export_stop: a clean end.
export_stop() {
    local pid=$EXPORT_PID_KEPT
    echo quit >&"${EXPORT[1]}"
    wait "$pid" || fail "the server ended with status $?"
}
export_abandon() {
    kill "$1" 2>/dev/null || return 0
    for _ in {1..50}; do kill -0 "$1" 2>/dev/null || return 0; sleep 0.1; done
    kill -9 "$1"
}

# nbd_start ARGUMENTS...: NBD on $NBD_SOCKET, reached by $NBD_URI.
nbd_start() {
    NBD_SOCKET=$TMP/nbd.sock
    NBD_URI="nbd+unix:///?socket=$NBD_SOCKET"
    export_start "$EXPORT_SERVER" --kind nbd --socket "$NBD_SOCKET" "$@"
}

# fuse_start ARGUMENTS...: the image as the file $FUSE_FILE, its descriptor held by a keeper.
fuse_start() {
    FUSE_FILE=$TMP/volume
    : >"$FUSE_FILE"
    export_start "$PLATTER_SOURCE/tests/lib/fuse_keeper.py" "$EXPORT_SERVER" "$FUSE_FILE" "$@"
}

# loop_attach FILE: sets LOOP; detached at exit.
loop_attach() {
    LOOP=$(losetup --find --show --direct-io=on "$1") || fail "losetup $1"
    cleanup_fn losetup -d "$LOOP"
}
loop_detach() {
    losetup -d "$LOOP"
    for _ in {1..100}; do losetup "$LOOP" >/dev/null 2>&1 || return 0; sleep 0.05; done
    fail "$LOOP stays"
}
