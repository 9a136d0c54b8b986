# SPDX-License-Identifier: Apache-2.0
"""One workload on one target: fio for files, devices and NBD, our own front-end client for vhost-user-blk."""
import collections
import json
import os
import random
import re
import subprocess

Sample = collections.namedtuple("Sample", "iops cpu_us")

# pattern, depth, flush after each write
SHAPES = {
    "randread-qd1": ("randread", 1, False),
    "randread-qd32": ("randread", 32, False),
    "randwrite-qd1": ("randwrite", 1, False),
    "randwrite-qd32": ("randwrite", 32, False),
    "alloc-qd32": ("randwrite", 32, False),
    "write-flush-fresh": ("randwrite", 1, True),
    "write-flush-allocated": ("randwrite", 1, True),
}


def cpu_seconds(pid):
    """CPU time of a process, with that of threads which have ended (nbdkit has one for each connection)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fio(target, pattern, depth, flush, seconds):
    command = ["fio", "--name=x", "--output-format=json", f"--rw={pattern}", "--bs=4k", f"--iodepth={depth}",
               f"--runtime={int(seconds * 1000)}ms", "--time_based", "--norandommap", "--randrepeat=0",
               f"--size={target.size}"]
    if flush:
        command.append("--fsync=1" if target.kind == "nbd" else "--fdatasync=1")  # its NBD engine knows only fsync
    if target.kind == "nbd":
        command += ["--ioengine=nbd", f"--uri={target.address}"]
    else:
        command += ["--ioengine=io_uring", "--direct=1", f"--filename={target.address}", "--allow_file_create=0"]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)}: {run.stdout}{run.stderr}")
    side = json.loads(run.stdout[run.stdout.index("{"):])["jobs"][0]["read" if pattern == "randread" else "write"]
    return side["iops"], side["total_ios"]


def vhost(target, pattern, depth, flush, seconds):
    command = [target.client, "--socket", target.address, "--rw", pattern, "--depth", str(depth), "--bs", "4096",
               "--seconds", str(seconds), "--seed", str(random.randrange(1, 1 << 30))]
    if flush:
        command.append("--flush")
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(re.search(r"([0-9.]+) IOPS", out).group(1)), int(re.search(r"([0-9]+) requests", out).group(1))


def run(target, workload, seconds):
    pattern, depth, flush = SHAPES[workload]
    before = sum(cpu_seconds(pid) for pid in target.pids)
    engine = vhost if target.kind == "vhost" else fio
    iops, done = engine(target, pattern, depth, flush, seconds)
    spent = sum(cpu_seconds(pid) for pid in target.pids) - before
    return Sample(iops, spent * 1e6 / max(done, 1))


def resident_kib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    return 0


def exists(pid):
    return os.path.exists(f"/proc/{pid}")
