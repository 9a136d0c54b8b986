#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Random writes, holes, zeroes and reads of a file by several threads, against copies in memory.

  fuse_random.py FILE [SEED]
"""
import ctypes
import os
import random
import sys
import threading
import time

SEED = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
PART = 8 << 20
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
failures = []


def fallocate(fd, mode, offset, length):
    if LIBC.fallocate(fd, mode, offset, length) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def work(path, part, turns):
    """One thread, one part of the file: nobody else writes there."""
    rng = random.Random(SEED * 1000 + part)
    fd = os.open(path, os.O_RDWR)
    base = part * PART
    model = bytearray(os.pread(fd, PART, base))
    for _ in range(turns):
        length = rng.randrange(1, rng.choice((512, 8192, 400000)))
        at = rng.randrange(PART - length)
        kind = rng.randrange(8)
        if kind == 0:
            fallocate(fd, rng.choice((PUNCH_HOLE, ZERO_RANGE)) | KEEP_SIZE, base + at, length)
            model[at:at + length] = bytes(length)
        elif kind < 4:
            data = rng.randbytes(length)
            assert os.pwrite(fd, data, base + at) == length
            model[at:at + length] = data
        elif kind == 4 and rng.random() < 0.2:
            os.fsync(fd)
        else:
            assert os.pread(fd, length, base + at) == model[at:at + length], f"bytes at {base + at}+{length}"
    assert os.pread(fd, PART, base) == model
    os.close(fd)


def guarded(*arguments):
    try:
        work(*arguments)
    except BaseException as error:  # a thread's error must fail the test
        failures.append(error)


def main():
    print("seed", SEED)
    parts = os.stat(sys.argv[1]).st_size // PART
    threads = [threading.Thread(target=guarded, args=(sys.argv[1], part, 400)) for part in range(parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures:
        print(repr(failure), file=sys.stderr)
    sys.exit(1 if failures else 0)


main()
