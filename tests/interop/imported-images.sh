# SPDX-License-Identifier: Apache-2.0
# Sourced after functions.sh and platterd.sh, with the qemu-img to test against in PATH: images of every kind that it makes
# are imported as they are, attached, changed through each of the three exports, and are then clean and identical to the
# model for qemu's own tools.
requires qemu-img --version
requires qemu-io --version

size=24M
start_platterd
mkdir "$TMP/pool" "$TMP/images"
platter pool create p "$TMP/pool" >/dev/null

# fill IMAGE: data, zeroes, discards, small and large, aligned and not
fill() {
    qemu-io -f qcow2 -d unmap \
        -c 'write -P 17 0 1M' -c 'write -P 18 1310720 3584' -c 'write -P 19 4M 2M' -c 'write -z 4608k 128k' \
        -c 'discard 5M 256k' -c 'write -P 20 9999872 70144' -c 'write -z -u 12M 1M' -c 'write -P 21 20M 4M' "$1" >/dev/null
}

# image NAME OPTIONS: an image of its own
image() {
    qemu-img create -q -f qcow2 -o "$2" "$TMP/images/$1" "$size"
    fill "$TMP/images/$1"
}

image v2 compat=0.10
image v3 compat=1.1
image c512 cluster_size=512
image c4k cluster_size=4k
image c2M cluster_size=2M
image extended extended_l2=on,cluster_size=128k
image extended-small extended_l2=on,cluster_size=16k
image lazy lazy_refcounts=on
image refcount1 refcount_bits=1
image refcount64 refcount_bits=64
image metadata preallocation=metadata
image falloc preallocation=falloc
image full preallocation=full
qemu-img convert -c -O qcow2 "$TMP/images/v3" "$TMP/images/zlib"
qemu-img convert -c -O qcow2 -o compression_type=zstd "$TMP/images/v3" "$TMP/images/zstd"
qemu-img convert -c -O qcow2 -o extended_l2=on,cluster_size=64k "$TMP/images/v3" "$TMP/images/zlib-extended"
fill "$TMP/images/zlib" # some compressed clusters replaced
image snapshot compat=1.1
qemu-img snapshot -c s1 "$TMP/images/snapshot"
qemu-io -f qcow2 -c 'write -P 30 512k 1M' "$TMP/images/snapshot" >/dev/null

# use VOLUME EXPORT MODEL: attach, change, detach
use() {
    local volume=$1 export=$2 model=$3 attachment id target
    case $export in
    device) attachment=$(platter attach "$volume" --to device --via fuse -o json) ;;
    *) attachment=$(platter attach "$volume" --to vm --export "$export" -o json) ;;
    esac
    id=$(jq -r .id <<<"$attachment")
    case $export in
    device) target=file:$(jq -r .device <<<"$attachment") ;;
    nbd) target=nbd:$(jq -r .socket <<<"$attachment") ;;
    *) target=vhost:$(jq -r .socket <<<"$attachment") ;;
    esac
    "$PLATTER_BUILD/tests/mutate" --target "$target" --model "$model" --operations 120 || fail "$volume through $export"
    platter detach "$id" >/dev/null
}

# judge NAME MODEL: what qemu's tools say of the volume's top layer
judge() {
    local layer file
    layer=$(platter volume show "$1" -o json | jq -r '.layers[0].id')
    file=$(find "$TMP/pool" -name "$layer*" ! -name '*.json' -type f)
    qemu-img check -q -f qcow2 "$file" || fail "$1: qemu-img check"
    qemu-img compare -q -f qcow2 -F raw "$file" "$2" || fail "$1: qemu-img compare"
}

for path in "$TMP"/images/*; do
    name=$(basename "$path")
    model=$TMP/model.raw
    qemu-img convert -O raw "$path" "$model"
    platter volume import "$name" "$path" --source-format qcow2 --preserve --pool p >/dev/null
    for export in device nbd vhost-user-blk; do
        use "$name" "$export" "$model"
        judge "$name" "$model"
    done
    platter volume delete "$name" --yes >/dev/null
done
[ -z "$(find "$TMP/pool" -name 'lay-*')" ] || fail "files left in the pool"
