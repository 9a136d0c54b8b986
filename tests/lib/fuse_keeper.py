#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What platterd does for a FUSE export, for tests: mounts a file, keeps the descriptor, runs servers on it.

  fuse_keeper.py SERVER FILE ARGUMENTS...

SERVER is export-server, FILE the mount point (a regular file), ARGUMENTS go to every server. Prints "ready", then
obeys lines on standard input and answers each with one line: "kill" (SIGKILL, wait for the death, start a
successor), "stop" (end the server cleanly), "start" (a successor after stop), "quit"; others go to the server. Unmounts
when it ends, whatever happens.
"""
import ctypes
import os
import signal
import subprocess
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
MS_NOSUID, MS_NODEV, MNT_DETACH = 2, 4, 2


def mount(path):
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    data = f"fd={fd},rootmode=100600,user_id=0,group_id=0,allow_other".encode()
    if LIBC.mount(b"platter", path.encode(), b"fuse", ctypes.c_ulong(MS_NOSUID | MS_NODEV), data) != 0:
        raise OSError(ctypes.get_errno(), "mount " + path)
    return fd


class Keeper:
    def __init__(self, server, path, arguments):
        self.command = [server, "--kind", "fuse", *arguments]
        self.path = path
        self.process = None
        self.fd = mount(path)

    def start(self, resumed):
        extra = ["--resumed"] if resumed else []
        self.process = subprocess.Popen(
            [*self.command, "--fd", str(self.fd), *extra], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            pass_fds=[self.fd], text=True)
        return self.process.stdout.readline().strip()

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        return self.start(True)

    def stop(self):
        if self.process is None:
            return "stopped"
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait()
        self.process = None
        return "stopped" if status == 0 else f"error exit status {status}"

    def close(self):
        # Detached first: nobody can reach the file any more. Then the connection ends with its last descriptor,
        # and whoever still waits gets an error.
        LIBC.umount2(self.path.encode(), MNT_DETACH)
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        os.close(self.fd)


def obey(keeper, line):
    if line == "kill":
        return keeper.kill()
    if line == "stop":
        return keeper.stop()
    if line == "start":
        return keeper.start(True)
    return keeper.ask(line)


def main():
    keeper = Keeper(sys.argv[1], sys.argv[2], sys.argv[3:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        answer = keeper.start(False)
        print(answer, flush=True)
        if answer != "ready":
            sys.exit(1)
        for line in sys.stdin:
            if line.strip() == "quit":
                print(keeper.stop(), flush=True)
                break
            print(obey(keeper, line.strip()), flush=True)
    finally:
        keeper.close()


main()
