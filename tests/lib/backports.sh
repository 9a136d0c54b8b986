# SPDX-License-Identifier: Apache-2.0
# Packages of bookworm-backports without installing them: fetched with an apt configuration of its own, so the system's stays
# as it is, and unpacked. Sourced after functions.sh. What was fetched is kept in $BACKPORTS_CACHE.

BACKPORTS_CACHE=${XDG_CACHE_HOME:-/var/cache}/platter-test

# The mirror that this machine's own configuration names.
backports_mirror() {
    local mirror
    mirror=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p; s/^deb  *\(\[[^]]*\] *\)\?\([^ ]*\) bookworm .*/\2/p' \
        /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -n1)
    [[ $mirror ]] && echo "$mirror"
}

# backports_unpack WORK PACKAGE: into WORK/tree. A package that only depends on the real one is followed ("@NAME").
backports_unpack() {
    local work=$1 package=$2 mirror options
    mirror=$(backports_mirror) || return
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/tree"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm-backports main" \
        >"$work/sources.list"
    options=(-o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=-
        -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root
        -o DPkg::Lock::Timeout=300)
    apt-get "${options[@]}" -qq update || return
    if [[ $package == @* ]]; then
        package=$(apt-cache "${options[@]}" depends "${package#@}" | awk '/Depends:/ {print $2; exit}')
        [[ $package ]] || return
    fi
    (cd "$work" && apt-get "${options[@]}" -qq download "$package") || return
    dpkg -x "$work"/*.deb "$work/tree"
}

# backports_qemu: qemu-img and qemu-io of backports come first in PATH from now on; skips when they cannot be had.
backports_qemu() {
    local work tree=$BACKPORTS_CACHE/qemu-utils
    if [[ ! -x $tree/usr/bin/qemu-img ]]; then
        mkdir -p "$BACKPORTS_CACHE"
        work=$(mktemp -d "$BACKPORTS_CACHE/fetch.XXXXXX")
        cleanup_fn rm -rf "$work"
        backports_unpack "$work" qemu-utils >&2 || skip "cannot fetch qemu-utils from bookworm-backports"
        rm -rf "$tree"
        mv "$work/tree" "$tree"
    fi
    "$tree/usr/bin/qemu-img" --version >/dev/null 2>&1 || skip "qemu-utils of backports do not run here"
    PATH=$tree/usr/bin:$PATH
}
