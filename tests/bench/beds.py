# SPDX-License-Identifier: Apache-2.0
"""Where the images of a benchmark lie: a disk of RAM, so that the CPU decides, or the ordinary disk."""
import contextlib
import os
import shutil
import subprocess
import tempfile


class Bed:
    def __init__(self, name, directory, size_mib):
        self.name = name
        self.directory = directory
        self.size = size_mib << 20
        self.filled = os.path.join(directory, "filled.raw")

    def fill(self):
        """A file of random bytes, written once: the content of every allocated image."""
        subprocess.run(["dd", "if=/dev/urandom", f"of={self.filled}", "bs=1M", f"count={self.size >> 20}",
                        "conv=fsync", "status=none"], check=True)


@contextlib.contextmanager
def open_bed(name, size_mib):
    """fast: XFS on a loop device with direct I/O over tmpfs. disk: a directory of the temporary file system."""
    with contextlib.ExitStack() as stack:
        base = tempfile.mkdtemp(prefix="platter-bench.")
        stack.callback(shutil.rmtree, base, ignore_errors=True)
        directory = base
        if name == "fast":
            memory = os.path.join(base, "memory")
            directory = os.path.join(base, "bed")
            os.mkdir(memory)
            os.mkdir(directory)
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12g", "tmpfs", memory], check=True)
            stack.callback(subprocess.run, ["umount", memory], check=False)
            disk = os.path.join(memory, "disk")
            with open(disk, "wb") as file:
                file.truncate(11 << 30)
            loop = subprocess.run(["losetup", "--find", "--show", "--direct-io=on", disk], check=True,
                                  capture_output=True, text=True).stdout.strip()
            stack.callback(subprocess.run, ["losetup", "-d", loop], check=False)
            subprocess.run(["mkfs.xfs", "-q", loop], check=True)
            subprocess.run(["mount", loop, directory], check=True)
            stack.callback(subprocess.run, ["umount", directory], check=False)
        bed = Bed(name, directory, size_mib)
        bed.fill()
        yield bed
