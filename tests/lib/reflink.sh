# SPDX-License-Identifier: Apache-2.0
# Sourced after functions.sh: file systems on loop devices.
requires test -e /dev/loop-control
[ "$(id -u)" = 0 ] || skip "needs root"

# make_filesystem KIND DIRECTORY [MKFS OPTIONS...]: a new one on a sparse file, mounted there. Fails when the kernel
# cannot.
make_filesystem() {
    local kind=$1 dir=$2 file=$TMP/disk.$RANDOM
    shift 2
    if [ "$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1)" -gt 2000000 ] 2>/dev/null; then # quicker
        file=$(mktemp /dev/shm/platter-test.XXXXXX)
        cleanup_fn rm -f "$file"
    fi
    truncate -s 1G "$file"
    "mkfs.$kind" -q "$@" "$file" >/dev/null || return 1
    mkdir -p -m 0755 "$dir"
    cleanups=("$(printf '%q ' umount -q "$dir")" "${cleanups[@]}") # after all others
    mount -o loop "$file" "$dir" || return 1
    chmod 0755 "$dir"
}

# sharing DIRECTORY: can its files share blocks? Asked of the file system itself, not of platter.
sharing() {
    local status=0
    head -c 4096 /dev/zero >"$1/from"
    cp --reflink=always "$1/from" "$1/to" 2>/dev/null || status=1
    rm -f "$1/from" "$1/to"
    return $status
}
