# SPDX-License-Identifier: Apache-2.0
"""The candidates of the benchmark: platter through its own command, and the peers that a user would pick instead."""
import collections
import json
import os
import shutil
import signal
import subprocess
import time

Target = collections.namedtuple("Target", "kind address size pids client", defaults=[None])


def wait_for(path, process):
    deadline = time.monotonic() + 10
    while not os.path.exists(path):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{path} did not appear")
        time.sleep(0.01)


def losetup(path):
    return subprocess.run(["losetup", "--find", "--show", "--direct-io=on", path], check=True, capture_output=True,
                          text=True).stdout.strip()


class Daemon:
    """A private platterd with one pool on the bed."""

    def __init__(self, build, directory):
        self.bin = os.path.join(build, "bin")
        self.client = os.path.join(build, "tests", "vhost-bench")
        self.state = os.path.join(directory, "state")
        self.runtime = os.path.join(directory, "runtime")
        self.pool = os.path.join(directory, "pool")
        self.process = None

    def __enter__(self):
        for path in (self.state, self.runtime, self.pool):
            os.mkdir(path, 0o755)
        self.process = subprocess.Popen([os.path.join(self.bin, "platterd"), "--state-dir", self.state,
                                         "--runtime-dir", self.runtime, "--log-level", "error"])
        wait_for(os.path.join(self.runtime, "platter.sock"), self.process)
        self.command("pool", "create", "bench", self.pool, "--overprovision", "1000")
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)

    def command(self, *words):
        out = subprocess.run([os.path.join(self.bin, "platter"), "--socket", os.path.join(self.runtime, "platter.sock"),
                              *words, "-o", "json"], check=True, capture_output=True, text=True).stdout
        return json.loads(out) if out.strip() else None


class Floor:
    """fio's io_uring engine on the raw file itself."""
    can_be_fresh = True

    def __init__(self, bed):
        self.name, self.bed = "floor: fio on the file", bed
        self.path = os.path.join(bed.directory, "floor.raw")

    def start(self, fresh):
        if fresh:
            with open(self.path, "wb") as file:
                file.truncate(self.bed.size)
        else:
            shutil.copyfile(self.bed.filled, self.path)
            os.sync()
        return Target("file", self.path, self.bed.size, [])

    def stop(self):
        if os.path.exists(self.path):
            os.unlink(self.path)


class Peer:
    """A peer's server process over an image file, as file, NBD socket, vhost-user socket or loop device."""

    def __init__(self, bed, daemon, name, image_format, transport, can_be_fresh=True):
        self.bed, self.daemon, self.name = bed, daemon, name
        self.format, self.transport, self.can_be_fresh = image_format, transport, can_be_fresh
        stem = name.replace(" ", "-").replace("+", "-")
        self.image = os.path.join(bed.directory, f"{stem}.{image_format}")
        self.socket = os.path.join(bed.directory, f"{stem}.sock")
        self.mount = os.path.join(bed.directory, f"{stem}.fuse")
        self.process, self.loop = None, None

    def make_image(self, fresh):
        if fresh:
            subprocess.run(["qemu-img", "create", "-q", "-f", self.format, self.image, str(self.bed.size)], check=True)
        else:
            subprocess.run(["qemu-img", "convert", "-t", "none", "-f", "raw", "-O", self.format, self.bed.filled,
                            self.image], check=True)
        os.sync()  # or the first direct reads wait for the page cache to be written

    def serve(self, command):
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        return [self.process.pid]

    def storage_daemon(self, export):
        return ["qemu-storage-daemon", "--blockdev",
                f"driver=file,node-name=file,filename={self.image},cache.direct=on,aio=io_uring",
                "--blockdev", f"driver={self.format},node-name=image,file=file,cache.direct=on,discard=unmap", *export]

    def start(self, fresh):
        self.make_image(fresh)
        size = self.bed.size
        if self.transport == "loop":
            self.loop = losetup(self.image)
            return Target("device", self.loop, size, [])
        if self.transport == "nbdkit":
            pids = self.serve(["nbdkit", "-f", "-U", self.socket, "file", self.image, "cache=none"])
        elif self.transport == "qemu-nbd":
            pids = self.serve(["qemu-nbd", "-t", "-e", "16", "-k", self.socket, "-f", self.format, "--cache=none",
                               "--aio=io_uring", self.image])
        elif self.transport == "nbd":
            pids = self.serve(self.storage_daemon(
                ["--nbd-server", f"addr.type=unix,addr.path={self.socket}", "--export",
                 "type=nbd,id=e,node-name=image,name=,writable=on"]))
        elif self.transport == "vhost":
            pids = self.serve(self.storage_daemon(
                ["--export", f"type=vhost-user-blk,id=e,node-name=image,addr.type=unix,addr.path={self.socket},"
                 "writable=on"]))
        else:
            open(self.mount, "wb").close()
            pids = self.serve(self.storage_daemon(
                ["--export", f"type=fuse,id=e,node-name=image,mountpoint={self.mount},writable=on"]))
            deadline = time.monotonic() + 10
            while os.stat(self.mount).st_size != size and time.monotonic() < deadline:
                time.sleep(0.01)
            self.loop = losetup(self.mount)
            return Target("device", self.loop, size, pids)
        wait_for(self.socket, self.process)
        if self.transport == "vhost":
            return Target("vhost", self.socket, size, pids, self.daemon.client)
        return Target("nbd", f"nbd+unix:///?socket={self.socket}", size, pids)

    def stop(self):
        if self.loop:
            subprocess.run(["losetup", "-d", self.loop], check=False)
            self.loop = None
        if self.process:
            self.process.terminate()
            self.process.wait(20)
            self.process = None
        for path in (self.image, self.socket, self.mount):
            if os.path.exists(path):
                os.unlink(path)


class Platter:
    """A volume of our own, attached by the command."""
    can_be_fresh = True

    def __init__(self, bed, daemon, name, image_format, words):
        self.bed, self.daemon, self.name, self.format, self.words = bed, daemon, name, image_format, words
        self.volume = name.replace(" ", "-").replace("+", "-")
        self.attachment = None

    def start(self, fresh):
        if fresh:
            self.daemon.command("volume", "create", self.volume, "--size", str(self.bed.size), "--format", self.format,
                                "--pool", "bench")
        else:
            self.daemon.command("volume", "import", self.volume, self.bed.filled, "--source-format", "raw", "--format",
                                self.format, "--pool", "bench")
        self.attachment = self.daemon.command("attach", self.volume, *self.words)
        pids = [self.attachment["server_pid"]] if self.attachment.get("server_pid") else []
        if "vhost-user-blk" in self.words:
            return Target("vhost", self.attachment["socket"], self.bed.size, pids, self.daemon.client)
        if "nbd" in self.words:
            return Target("nbd", f"nbd+unix:///?socket={self.attachment['socket']}", self.bed.size, pids)
        return Target("device", self.attachment["device"], self.bed.size, pids)

    def stop(self):
        if self.attachment:
            self.daemon.command("detach", self.attachment["id"])
            self.attachment = None
            self.daemon.command("volume", "delete", self.volume, "--yes")


def everything(bed, daemon):
    vhost = ["--to", "vm", "--export", "vhost-user-blk"]
    nbd = ["--to", "vm", "--export", "nbd"]
    return [
        Floor(bed),
        Peer(bed, daemon, "loop raw", "raw", "loop"),
        Peer(bed, daemon, "QSD vhost raw", "raw", "vhost"),
        Peer(bed, daemon, "QSD vhost qcow2", "qcow2", "vhost"),
        Platter(bed, daemon, "platter vhost raw", "raw", vhost),
        Platter(bed, daemon, "platter vhost qcow2", "qcow2", vhost),
        Peer(bed, daemon, "QSD nbd qcow2", "qcow2", "nbd"),
        Peer(bed, daemon, "qemu-nbd qcow2", "qcow2", "qemu-nbd"),
        Peer(bed, daemon, "nbdkit raw", "raw", "nbdkit"),
        Platter(bed, daemon, "platter nbd raw", "raw", nbd),
        Platter(bed, daemon, "platter nbd qcow2", "qcow2", nbd),
        Peer(bed, daemon, "QSD fuse+loop qcow2", "qcow2", "fuse"),
        Platter(bed, daemon, "platter fuse+loop raw", "raw", ["--to", "device", "--via", "fuse"]),
        Platter(bed, daemon, "platter fuse+loop qcow2", "qcow2", ["--to", "device", "--via", "fuse"]),
    ]
