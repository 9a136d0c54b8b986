# SPDX-License-Identifier: Apache-2.0
"""What a layer below costs: first writes after a snapshot, and the gap in completions while a snapshot is taken."""
import random
import re
import statistics
import subprocess
import time

import load
from control import row

CLUSTER = 65536  # bytes: the default of a volume, of which each is written for the first time once
VM = ["--to", "vm", "--export", "vhost-user-blk"]


def client(daemon, attachment, *words):
    return [daemon.client, "--socket", attachment["socket"], "--rw", "randwrite", "--bs", "4096", "--depth", "32",
            "--seed", str(random.randrange(1, 1 << 30)), *words]


def first_writes(daemon, attachment):
    """4 KiB at the start of each cluster, once: (IOPS, server CPU us for each)."""
    pid = attachment["server_pid"]
    before = load.cpu_seconds(pid)
    out = subprocess.run(client(daemon, attachment, "--each", str(CLUSTER)), check=True, capture_output=True,
                         text=True).stdout
    spent = load.cpu_seconds(pid) - before
    done = int(re.search(r"([0-9]+) requests", out).group(1))
    return float(re.search(r"([0-9.]+) IOPS", out).group(1)), spent * 1e6 / max(done, 1)


def overlay(daemon, bed, repeat):
    """In turn: a new volume, the same with subclusters as the layer over a snapshot has them, and a volume full of data
    of which a snapshot was just taken."""
    taken = {"alone": [], "alone, subclusters": [], "overlay": []}
    for _ in range(repeat):
        for kind, samples in taken.items():
            if kind != "overlay":
                subclusters = ["--extended-l2"] if kind == "alone, subclusters" else []
                daemon.command("volume", "create", "layers", "--size", str(bed.size), "--format", "qcow2", "--pool",
                               "bench", *subclusters)
            else:
                daemon.command("volume", "import", "layers", bed.filled, "--source-format", "raw", "--format", "qcow2",
                               "--pool", "bench")
            attachment = daemon.command("attach", "layers", *VM)
            if kind == "overlay":
                daemon.command("snapshot", "create", "layers@before")
            samples.append(first_writes(daemon, attachment))
            daemon.command("detach", attachment["id"])
            daemon.command("volume", "delete", "layers", "--snapshots", "--yes")
    middle = {kind: [round(statistics.median(column), 1) for column in zip(*samples)]
              for kind, samples in taken.items()}
    peers = {f"{kind}: IOPS, CPU us": figures for kind, figures in middle.items()}
    rows = []
    for kind, label in (("alone", "without a parent"), ("alone, subclusters", "without a parent, subclusters too")):
        value = statistics.median(over[0] / alone[0] for over, alone in zip(taken["overlay"], taken[kind]))
        rows.append(row(f"first write after a snapshot, 4 KiB QD32 / {label}", ">= 0.8", value, "ratio", value >= 0.8,
                        peers))
    return rows


def gap_ms(daemon, attachment, written, seconds, snapshot):
    """The longest time without a completion, in random writes to the first `written` bytes at depth 32."""
    words = ["--seconds", str(seconds), "--range", str(written)]
    process = subprocess.Popen(client(daemon, attachment, *words), stdout=subprocess.PIPE,
                               text=True)
    pause = None
    try:
        time.sleep(seconds / 2)
        if snapshot:
            pause = daemon.command("snapshot", "create", snapshot).get("pause_us")
    finally:
        out, _ = process.communicate(timeout=60)
    return float(re.search(r"longest gap ([0-9]+) us", out).group(1)) / 1000, pause


def gaps(daemon, bed, repeat, seconds):
    rows = []
    for label, size in (("image of the bed's size", bed.size), ("image of 1 TiB", 1 << 40)):
        if size == bed.size:
            daemon.command("volume", "import", "layers", bed.filled, "--source-format", "raw", "--format", "qcow2",
                           "--pool", "bench")
        else:
            daemon.command("volume", "create", "layers", "--size", str(size), "--format", "qcow2", "--pool", "bench")
        attachment = daemon.command("attach", "layers", *VM)
        without, during, pauses = [], [], []
        for i in range(repeat):
            without.append(gap_ms(daemon, attachment, bed.size, seconds, None)[0])
            gap, pause = gap_ms(daemon, attachment, bed.size, seconds, f"layers@s{i}")
            during.append(gap)
            if pause is not None:
                pauses.append(pause / 1000)
        daemon.command("detach", attachment["id"])
        daemon.command("volume", "delete", "layers", "--snapshots", "--yes")
        value = statistics.median(during)
        rows.append(row(f"longest gap with a snapshot under load, {label}", "<= 10 ms", value, "ms", value <= 10,
                        {"longest": round(max(during), 2), "without a snapshot": round(statistics.median(without), 2),
                         "longest without": round(max(without), 2),
                         "server's pause": round(statistics.median(pauses), 2) if pauses else None}))
    return rows


def rows(daemon, bed, repeat, seconds):
    return overlay(daemon, bed, repeat) + gaps(daemon, bed, repeat, seconds)
