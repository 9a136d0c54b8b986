# SPDX-License-Identifier: Apache-2.0
"""The control path: latency of create, attach and mount through the API, import and export speed, resident memory."""
import http.client
import json
import os
import socket
import subprocess
import time

import load


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


class Api:
    """One kept-alive connection, so that a figure is the daemon's and not a process start."""

    def __init__(self, daemon):
        self.connection = UnixConnection(os.path.join(daemon.runtime, "platter.sock"))

    def call(self, method, path, body=None):
        separator = "&" if "?" in path else "?"
        target = path + (separator + "wait=60" if method != "GET" else "")
        self.connection.request(method, target, json.dumps(body) if body is not None else None,
                                {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status >= 300 or answer.status == 202:
            raise RuntimeError(f"{method} {path}: {answer.status} {text!r}")
        return json.loads(text) if text else None


def timed(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return (time.perf_counter() - start) * 1000, result


def p99(samples):
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def disk_flush_ms(directory):
    """What one durable small file costs on this disk, for reading the latencies below."""
    path = os.path.join(directory, "flush-probe")
    samples = []
    for _ in range(20):
        with open(path, "wb") as file:
            start = time.perf_counter()
            file.write(b"x" * 512)
            file.flush()
            os.fsync(file.fileno())
            samples.append((time.perf_counter() - start) * 1000)
    os.unlink(path)
    return sorted(samples)[len(samples) // 2]


def latencies(daemon, bed, count=50):
    api = Api(daemon)
    samples = {"create": [], "attach": [], "detach": [], "mount": [], "mount-again": [], "delete": []}
    target = os.path.join(bed.directory, "mnt")
    os.mkdir(target)
    resident = []
    for i in range(count):
        name = f"lat-{i}"
        took, _ = timed(api.call, "POST", "/v1/volumes", {"name": name, "pool": "bench", "size": 1 << 30})
        samples["create"].append(took)
        took, attachment = timed(api.call, "POST", "/v1/attachments",
                                 {"volume": name, "kind": "vm", "export": "vhost-user-blk"})
        samples["attach"].append(took)
        if attachment.get("server_pid"):
            resident.append(load.resident_kib(attachment["server_pid"]))
        took, _ = timed(api.call, "DELETE", f"/v1/attachments/{attachment['id']}")
        samples["detach"].append(took)
        for kind in ("mount", "mount-again"):
            took, mounted = timed(api.call, "POST", "/v1/attachments",
                                  {"volume": name, "kind": "mount", "target": target})
            samples[kind].append(took)
            api.call("DELETE", f"/v1/attachments/{mounted['id']}")
        took, _ = timed(api.call, "DELETE", f"/v1/volumes/{name}")
        samples["delete"].append(took)
    os.rmdir(target)
    return samples, resident


def conversion(daemon, bed):
    """Import of the filled image against qemu-img convert of the same, with the same final flush."""
    out = os.path.join(bed.directory, "peer.qcow2")
    peer, _ = timed(lambda: subprocess.run(
        ["qemu-img", "convert", "-t", "none", "-T", "none", "-f", "raw", "-O", "qcow2", bed.filled, out], check=True))
    os.unlink(out)
    ours, _ = timed(daemon.command, "volume", "import", "conversion", bed.filled, "--source-format", "raw",
                    "--format", "qcow2", "--pool", "bench")
    back = os.path.join(bed.directory, "back.raw")
    ours_back, _ = timed(daemon.command, "volume", "export", "conversion", back, "--format", "raw")
    subprocess.run(["cmp", bed.filled, back], check=True)
    os.unlink(back)
    daemon.command("volume", "delete", "conversion", "--yes")
    return peer / ours, peer / ours_back


def row(name, goal, value, unit, met, peers=None):
    return {"name": name, "goal": goal, "value": round(value, 3), "unit": unit, "met": bool(met), "peers": peers or {}}


def rows(daemon, bed):
    flush = disk_flush_ms(bed.directory)
    samples, resident = latencies(daemon, bed)
    result = []
    for kind, goal in (("create", 5), ("attach", 30), ("mount", 80)):
        value = p99(samples[kind])
        result.append(row(f"{kind} p99", f"<= {goal} ms + flushes", value, "ms", value <= goal + 10 * flush,
                          {"median": round(sorted(samples[kind])[len(samples[kind]) // 2], 2),
                           "one flush of this disk": round(flush, 2)}))
    for kind in ("detach", "mount-again", "delete"):
        result.append(row(f"{kind} p99", "", p99(samples[kind]), "ms", True))
    imported, exported = conversion(daemon, bed)
    result.append(row("import raw to qcow2 / qemu-img convert", ">= 1.5", imported, "ratio", imported >= 1.5))
    result.append(row("export qcow2 to raw / qemu-img convert", ">= 1.5", exported, "ratio", exported >= 1.5))
    if resident:
        idle = sorted(resident)[len(resident) // 2] / 1024
        result.append(row("platter-blk resident, idle", "<= 4 MiB", idle, "MiB", idle <= 4))
    daemon_resident = load.resident_kib(daemon.process.pid) / 1024
    result.append(row("platterd resident", "<= 24 MiB", daemon_resident, "MiB", daemon_resident <= 24))
    return result
