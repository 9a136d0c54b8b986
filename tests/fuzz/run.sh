#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# run.sh TARGET [libFuzzer options]: one fuzz target for PLATTER_FUZZ_SECONDS (10), with seeds from images that qemu-img
# made. What it has learnt stays in corpus/ beside the target for the next run; an input that breaks something is kept there,
# too, and named on the way out. PLATTER_FUZZ_SEED repeats a run.
set -euo pipefail
target=$(realpath "$1")
shift
name=$(basename "$target")
name=${name#fuzz_}
home=$(dirname "$target")/fuzz
corpus=$home/corpus/$name
mkdir -p "$corpus" "$home/images"

# make NAME OPTIONS: a small image with data, zeros and holes
make() {
    local image=$home/images/$1.qcow2
    [ -e "$image" ] && return 0
    qemu-img create -q -f qcow2 -o "$2" "$image.new" 4M
    qemu-io -f qcow2 -c 'write -P 7 0 256k' -c 'write -P 8 1M 12k' -c 'write -z 512k 64k' -c 'discard 128k 64k' \
        -c 'write -P 9 3M 5k' "$image.new" >/dev/null
    case $1 in
    snapshot) qemu-img snapshot -c one "$image.new" && qemu-io -f qcow2 -c 'write -P 3 0 64k' "$image.new" >/dev/null ;;
    compressed)
        qemu-img convert -q -c -f qcow2 -O qcow2 -o "$2" "$image.new" "$image.2"
        mv "$image.2" "$image.new"
        ;;
    bitmap) qemu-img bitmap --add "$image.new" b0 && qemu-io -f qcow2 -c 'write -P 4 64k 64k' "$image.new" >/dev/null ;;
    esac
    mv "$image.new" "$image"
}
if [ "$name" = qcow2 ] && command -v qemu-io >/dev/null; then
    (
        flock 9
        make v2 compat=0.10,cluster_size=4096
        make small cluster_size=512
        make subclusters extended_l2=on,cluster_size=16k
        make snapshot cluster_size=4096
        make compressed cluster_size=4096
        make zstd cluster_size=4096,compression_type=zstd
        make bitmap cluster_size=4096
        make lazy lazy_refcounts=on,cluster_size=4096
        make narrow refcount_bits=1,cluster_size=4096
    ) 9>"$home/images/.lock"
    export PLATTER_FUZZ_IMAGES=$home/images
fi

seed=${PLATTER_FUZZ_SEED:-$((RANDOM * 32768 + RANDOM + 1))}
echo "$name: PLATTER_FUZZ_SEED=$seed"
exec "$target" -max_total_time="${PLATTER_FUZZ_SECONDS:-10}" -seed="$seed" -max_len=8192 -timeout=60 -rss_limit_mb=1024 \
    -verbosity=0 -print_final_stats=1 -artifact_prefix="$corpus/../broke-$name-" "$@" "$corpus"
