# SPDX-License-Identifier: Apache-2.0
# Sourced by the qcow2 interop tests: put the engine's random load on an image and ask qemu-img about the result.
TOOL=$PLATTER_BUILD/tests/engine-tool
SEED=${PLATTER_SEED:-$RANDOM$RANDOM}
# Unless the caller chose one: loads take turns on the engines of the I/O loop.
ENGINES=(uring threads)
loads=0
requires test -x "$TOOL"
requires qemu-img --version

# layers FILE...: engine-tool's arguments for a chain of qcow2 files, or raw ones by their ending.
layers() {
    local file
    for file; do
        case $file in
        *.raw) echo "raw:$file" ;;
        *) echo "qcow2:$file" ;;
        esac
    done
}

# load "TOOL OPTIONS" TOP [BELOW...]: the image must read as qemu-img says, survive the load, be clean for qemu-img check
# without leaks, and read the same for qemu-img and for us.
load() {
    local options=$1 top=$2
    shift
    qemu-img convert -O raw "$top" "$TMP/before.raw"
    # shellcheck disable=SC2046,SC2086
    loads=$((loads + 1))
    PLATTER_IO_ENGINE=${PLATTER_IO_ENGINE:-${ENGINES[loads % 2]}} timeout 120 "$TOOL" -s "$SEED" -i "$TMP/before.raw" -o "$TMP/after.raw" -S $options $(layers "$@") ||
        fail "engine-tool -s $SEED $options on $top"
    qemu-img check "$top" >"$TMP/check" 2>&1 || { cat "$TMP/check"; fail "qemu-img check $top (seed $SEED, $options)"; }
    qemu-img compare "$top" "$TMP/after.raw" >"$TMP/check" 2>&1 ||
        { cat "$TMP/check"; fail "qemu-img compare $top (seed $SEED, $options)"; }
}

# unchanged "TOOL OPTIONS" TOP [BELOW...]: only read, read-only; identical to what qemu-img reads.
unchanged() {
    local options=$1 top=$2
    shift
    qemu-img convert -O raw "$top" "$TMP/before.raw"
    # shellcheck disable=SC2046,SC2086
    timeout 120 "$TOOL" -r -n 0 -i "$TMP/before.raw" -S $options $(layers "$@") || fail "reading $top"
}
