# SPDX-License-Identifier: Apache-2.0
# Sourced by every test script: a scratch directory, clean-up that also runs on failure, skipping with a reason.
set -euo pipefail

PLATTER_SOURCE=${PLATTER_SOURCE:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}
PLATTER_BUILD=${PLATTER_BUILD:-$PLATTER_SOURCE/build/release}
export PATH="$PLATTER_BUILD/bin:$PATH:/usr/sbin:/sbin"
TMP=$(mktemp -d "${TMPDIR:-/tmp}/platter-test.XXXXXX")

cleanups=()
# cleanup_fn COMMAND ARGS...: run at exit, last registered first, whatever happens.
cleanup_fn() { cleanups+=("$(printf '%q ' "$@")"); }
run_cleanups() {
    local status=$? i
    set +e
    for ((i = ${#cleanups[@]} - 1; i >= 0; i--)); do eval "${cleanups[i]}" >/dev/null 2>&1; done
    rm -rf --one-file-system "$TMP"
    exit "$status"
}
trap run_cleanups EXIT
trap 'exit 130' INT TERM

skip() { echo "SKIP: $*"; exit 77; }
# requires COMMAND ARGS...: skip unless it succeeds.
requires() { "$@" >/dev/null 2>&1 || skip "needs: $*"; }
fail() { echo "FAIL: $*" >&2; exit 1; }
# refuses PATTERN COMMAND...: the command must fail and its output must match PATTERN (extended, case-insensitive).
refuses() {
    local pattern=$1 out
    shift
    if out=$("$@" 2>&1); then fail "expected a refusal: $*"; fi
    grep -Eiq -- "$pattern" <<<"$out" || fail "'$*' failed, but said: $out (expected /$pattern/)"
}
