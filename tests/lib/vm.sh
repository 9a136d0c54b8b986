# SPDX-License-Identifier: Apache-2.0
# A small virtual machine for tests, sourced after functions.sh: a Debian kernel of bookworm-backports, an initramfs of
# busybox and a few programs, QEMU in software emulation. Up in about 3 s, and the test talks to a shell in it.
#
#   vm_start [QEMU ARGUMENTS...]   boot; clean-up is registered
#   vm_run COMMAND...              run a shell command in the guest: its output and its exit status
#   vm_qmp JSON                    one QMP command; prints what it returns
#   vm_qmp_wait EVENT [SECONDS]    wait for an event (also one that has come already) and print it
#   vm_stop                        power off and wait
#
# $VM_DIR/qmp is a second QMP socket, for the tested program. Free PCI ports for hot-plug: rp0 to rp3. Set before
# vm_start: VM_MEMORY (MiB, 512), VM_CPUS (1), VM_PROGRAMS (more programs of this host for the guest),
# VM_MODULES+=(NAME).
#
# Two oddities: `-cpu max` under QEMU 7.2 needs -cx16, or the guest's kernel crashes at random in cmpxchg16b; and
# the kernel starts from its unpacked vmlinux, which saves the emulated CPU unpacking it.

. "$PLATTER_SOURCE/tests/lib/backports.sh"
VM_CACHE=$BACKPORTS_CACHE
VM_MODULES=(virtio_blk virtio_scsi sd_mod xfs loop nbd)
VM_BASE_PROGRAMS=(mkfs.ext4 resize2fs e2fsck)

# ---- kernel and initramfs, kept in the cache -------------------------------------------------------------------

# The uncompressed kernel out of a bzImage: from the start of its zstd stream on.
vm_unpack_kernel() {
    local image=$1 out=$2 offset
    for offset in $(LC_ALL=C grep -abo -P '\x28\xb5\x2f\xfd' "$image" | cut -d: -f1); do
        tail -c "+$((offset + 1))" "$image" | zstd -dcq 2>/dev/null >"$out" || true # what follows the stream is no zstd
        [[ $(head -c4 "$out" | tail -c3) == ELF ]] && return 0
    done
    return 1
}

# Leaves vmlinux, version and the modules in $VM_CACHE/kernel.
vm_prepare_kernel() {
    [[ -e $VM_CACHE/kernel/vmlinux ]] && return 0
    local work version
    work=$(mktemp -d "$VM_CACHE/fetch.XXXXXX")
    cleanup_fn rm -rf "$work"
    backports_unpack "$work" @linux-image-cloud-amd64 >&2 || skip "cannot fetch a kernel from bookworm-backports"
    version=$(ls "$work/tree/lib/modules")
    depmod -b "$work/tree" "$version"
    vm_unpack_kernel "$work/tree/boot/vmlinuz-$version" "$work/tree/vmlinux" || fail "cannot unpack the kernel"
    echo "$version" >"$work/tree/version"
    rm -rf "$VM_CACHE/kernel"
    mv "$work/tree" "$VM_CACHE/kernel"
}

vm_write_init() {
    cat >"$1/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin:/sbin:/usr/sbin
mkdir -p /proc /sys /dev /tmp /mnt /run
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod "/modules/$module"; done
# Kept open, or the terminal's raw mode would be forgotten.
exec 3<>/dev/hvc0
stty raw -echo <&3
exec setsid sh /dev/hvc0 >&3 2>&3
INIT
    chmod 755 "$1/init"
}

# Copy the modules with all that they need, in the order in which they load.
vm_copy_modules() {
    local root=$1 version module file
    version=$(<"$VM_CACHE/kernel/version")
    mkdir -p "$root/modules"
    for module in "${VM_MODULES[@]}"; do
        modprobe -d "$VM_CACHE/kernel" -S "$version" --show-depends "$module" 2>/dev/null
    done | awk '/^insmod/ {print $2}' | awk '!seen[$0]++' | while read -r file; do
        xz -dc "$file" >"$root/modules/$(basename "${file%.xz}")"
        basename "${file%.xz}"
    done >"$root/modules/order"
}

# Programs of this host with the libraries that they need.
vm_copy_programs() {
    local root=$1 program path library
    shift
    for program in "$@"; do
        path=$(command -v "$program") || continue
        install -D "$path" "$root/usr/bin/$program"
        ldd "$path" 2>/dev/null | grep -o '/[^ ]*' | while read -r library; do
            [[ -e $root$library ]] || install -D "$library" "$root$library"
        done
    done
}

# Prints the path of the initramfs for the wanted programs.
vm_prepare_initramfs() {
    local programs=("${VM_BASE_PROGRAMS[@]}" ${VM_PROGRAMS:-}) key image root
    key=$({ cat "$VM_CACHE/kernel/version" "${BASH_SOURCE[0]}"; echo "${programs[@]} / ${VM_MODULES[@]}"; } |
        sha256sum | cut -c1-16)
    image=$VM_CACHE/initramfs-$key.cpio
    echo "$image"
    [[ -e $image ]] && return 0
    root=$TMP/vm-root
    mkdir -p "$root/bin" "$root/usr" "$root/etc"
    install "$(command -v busybox)" "$root/bin/busybox"
    ln -s /proc/mounts "$root/etc/mtab"
    vm_copy_modules "$root"
    vm_copy_programs "$root" "${programs[@]}"
    vm_write_init "$root"
    (cd "$root" && find . | cpio --quiet -o -H newc -R 0:0) >"$image.$$"
    mv "$image.$$" "$image"
    rm -rf "$root"
}

# ---- the machine -----------------------------------------------------------------------------------------------

vm_requires() {
    local program
    for program in qemu-system-x86_64 busybox socat cpio xz zstd depmod jq; do
        command -v "$program" >/dev/null || skip "needs: $program"
    done
    [[ $(uname -m) == x86_64 ]] || skip "the guest's kernel is for x86_64"
    mkdir -p "$VM_CACHE" 2>/dev/null && [[ -w $VM_CACHE ]] || skip "cannot write to $VM_CACHE"
}

# A socket as two descriptors that subshells inherit: vm_connect SOCKET NAME sets NAME_IN and NAME_OUT.
vm_connect() {
    local socket=$1 name=$2 i
    for ((i = 0; i < 200; i++)); do
        [[ -S $socket ]] && break
        kill -0 "$VM_PID" 2>/dev/null || fail "qemu has ended: $(cat "$VM_DIR/qemu.log")"
        sleep 0.05
    done
    mkfifo "$socket.in" "$socket.out"
    socat "UNIX-CONNECT:$socket" - <"$socket.in" >"$socket.out" 2>/dev/null &
    cleanup_fn kill "$!"
    exec {fd_in}>"$socket.in" {fd_out}<"$socket.out"
    printf -v "${name}_IN" %s "$fd_in"
    printf -v "${name}_OUT" %s "$fd_out"
}

vm_start() {
    vm_requires
    local initramfs memory=${VM_MEMORY:-512} port ports=()
    exec {vm_lock}>"$VM_CACHE/lock"
    flock "$vm_lock"
    vm_prepare_kernel
    initramfs=$(vm_prepare_initramfs)
    exec {vm_lock}>&-
    VM_DIR=$(mktemp -d "$TMP/vm.XXXXXX")
    : >"$VM_DIR/events"
    for port in 0 1 2 3; do ports+=(-device "pcie-root-port,id=rp$port,chassis=$((port + 1)),slot=$((port + 1))"); done
    qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
        -machine q35,memory-backend=mem0 -accel tcg,thread=multi -cpu max,-cx16 \
        -smp "${VM_CPUS:-1}" -m "$memory" -object "memory-backend-memfd,id=mem0,size=${memory}M,share=on" \
        -kernel "$VM_CACHE/kernel/vmlinux" -initrd "$initramfs" \
        -qmp "unix:$VM_DIR/qmp,server=on,wait=off" -qmp "unix:$VM_DIR/qmp-test,server=on,wait=off" \
        -chardev "file,id=con,path=$VM_DIR/console.log" -serial chardev:con \
        -chardev "socket,id=chan,path=$VM_DIR/chan,server=on,wait=off" \
        -device virtio-serial-pci -device virtconsole,chardev=chan "${ports[@]}" \
        -append 'console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off audit=0 apparmor=0 selinux=0 nokaslr
            no_timer_check tsc=reliable random.trust_cpu=on cryptomgr.notests i8042.noaux 8250.nr_uarts=1
            rcupdate.rcu_expedited=1 net.ifnames=0' \
        "$@" >"$VM_DIR/qemu.log" 2>&1 &
    VM_PID=$!
    cleanup_fn kill -9 "$VM_PID"
    VM_COUNT=0
    vm_connect "$VM_DIR/chan" VM_CHAN
    vm_connect "$VM_DIR/qmp-test" VM_QMP
    vm_qmp '{"execute": "qmp_capabilities"}' >/dev/null
    VM_TIMEOUT=120 vm_run true >/dev/null || fail "the guest does not boot: $(tail -n 20 "$VM_DIR/console.log")"
}

vm_run() {
    local mark line
    mark="@@$((++VM_COUNT))-$RANDOM"
    printf '{ %s\n} </dev/null 2>&1; echo "%s:$?"\n' "$*" "$mark" >&"$VM_CHAN_IN"
    while IFS= read -r -t "${VM_TIMEOUT:-60}" line <&"$VM_CHAN_OUT"; do
        line=${line%$'\r'}
        # The command's last line may lack its newline. (The first command may be echoed: no number after the mark.)
        if [[ $line =~ ^(.*)"$mark":([0-9]+)$ ]]; then
            printf '%s' "${BASH_REMATCH[1]}"
            return "${BASH_REMATCH[2]}"
        fi
        printf '%s\n' "$line"
    done
    echo "the guest does not answer: $*; its console: $(tail -n 5 "$VM_DIR/console.log")" >&2
    return 125
}

# Read one QMP line into `line`; events go to a file until somebody asks.
vm_qmp_line() {
    IFS= read -r -t "$1" line <&"$VM_QMP_OUT" || return
    line=${line%$'\r'}
    [[ $line != *'"event":'* ]] || printf '%s\n' "$line" >>"$VM_DIR/events"
}

vm_qmp() {
    local line
    printf '%s\n' "$1" >&"$VM_QMP_IN"
    while vm_qmp_line 30; do
        case $line in
        '{"return":'*) jq -c .return <<<"$line" && return 0 ;;
        '{"error":'*) echo "QMP: $1: $line" >&2 && return 1 ;;
        esac
    done
    echo "QMP does not answer: $1" >&2
    return 125
}

vm_qmp_wait() {
    local event=$1 until=$((SECONDS + ${2:-20})) line
    while ! grep -m1 "\"event\": *\"$event\"" "$VM_DIR/events"; do
        ((SECONDS < until)) || { echo "no event $event" >&2; return 1; }
        vm_qmp_line 1 || true
    done
    sed -i "0,/\"event\": *\"$event\"/{/\"event\": *\"$event\"/d}" "$VM_DIR/events"
}

vm_stop() {
    printf 'sync; poweroff -f\n' >&"$VM_CHAN_IN"
    local i
    for ((i = 0; i < 200; i++)); do
        kill -0 "$VM_PID" 2>/dev/null || break
        sleep 0.05
    done
    kill -9 "$VM_PID" 2>/dev/null || true
    wait "$VM_PID" 2>/dev/null || true
    exec {VM_CHAN_IN}>&- {VM_CHAN_OUT}<&- {VM_QMP_IN}>&- {VM_QMP_OUT}<&-
}
