# SPDX-License-Identifier: Apache-2.0
"""Goals as ratios of the measured figures, the table, and the plot."""
from control import row

FLOOR = "floor: fio on the file"


def ratio(figures, ours, theirs, workload, index=0):
    try:
        return figures[(ours, workload)][index] / max(figures[(theirs, workload)][index], 1e-9)
    except KeyError:
        return None


# name, ours, theirs, workload, index (0 IOPS, 1 CPU), comparison, goal
GOALS = [
    ("vhost qcow2 read QD32 / QSD", "platter vhost qcow2", "QSD vhost qcow2", "randread-qd32", 0, ">=", 2),
    ("vhost qcow2 write QD32 / QSD", "platter vhost qcow2", "QSD vhost qcow2", "randwrite-qd32", 0, ">=", 2),
    ("vhost qcow2 read QD1 / QSD", "platter vhost qcow2", "QSD vhost qcow2", "randread-qd1", 0, ">=", 1),
    ("vhost qcow2 read QD32, CPU / QSD", "platter vhost qcow2", "QSD vhost qcow2", "randread-qd32", 1, "<=", 0.4),
    ("vhost qcow2 write QD32, CPU / QSD", "platter vhost qcow2", "QSD vhost qcow2", "randwrite-qd32", 1, "<=", 0.4),
    ("vhost raw read QD32 / QSD", "platter vhost raw", "QSD vhost raw", "randread-qd32", 0, ">=", 2),
    ("NBD qcow2 read QD32 / QSD", "platter nbd qcow2", "QSD nbd qcow2", "randread-qd32", 0, ">=", 2.5),
    ("NBD qcow2 write QD32 / QSD", "platter nbd qcow2", "QSD nbd qcow2", "randwrite-qd32", 0, ">=", 2.5),
    ("NBD qcow2 read QD32 / qemu-nbd", "platter nbd qcow2", "qemu-nbd qcow2", "randread-qd32", 0, ">=", 2.5),
    ("NBD raw read QD32 / nbdkit", "platter nbd raw", "nbdkit raw", "randread-qd32", 0, ">=", 1),
    ("FUSE+loop qcow2 read QD32 / QSD", "platter fuse+loop qcow2", "QSD fuse+loop qcow2", "randread-qd32", 0, ">=", 3),
    ("FUSE+loop qcow2 write QD32 / QSD", "platter fuse+loop qcow2", "QSD fuse+loop qcow2", "randwrite-qd32", 0, ">=", 3),
    ("FUSE+loop qcow2 read QD1 / QSD", "platter fuse+loop qcow2", "QSD fuse+loop qcow2", "randread-qd1", 0, ">=", 1.4),
    ("FUSE+loop qcow2 read QD32, CPU / QSD", "platter fuse+loop qcow2", "QSD fuse+loop qcow2", "randread-qd32", 1, "<=",
     0.25),
    ("FUSE+loop qcow2 read QD32 / loop raw", "platter fuse+loop qcow2", "loop raw", "randread-qd32", 0, ">=", 0.6),
    ("vhost qcow2 allocating QD32 / floor", "platter vhost qcow2", FLOOR, "alloc-qd32", 0, ">=", 1),
    ("vhost qcow2 allocating QD32 / QSD", "platter vhost qcow2", "QSD vhost qcow2", "alloc-qd32", 0, ">=", 1),
    ("FUSE+loop qcow2 allocating QD32 / QSD", "platter fuse+loop qcow2", "QSD fuse+loop qcow2", "alloc-qd32", 0, ">=", 1),
    ("NBD qcow2 allocating QD32 / QSD", "platter nbd qcow2", "QSD nbd qcow2", "alloc-qd32", 0, ">=", 1),
    ("vhost qcow2 write+flush fresh / floor", "platter vhost qcow2", FLOOR, "write-flush-fresh", 0, ">=", 0.9),
    ("vhost qcow2 write+flush allocated / floor", "platter vhost qcow2", FLOOR, "write-flush-allocated", 0, ">=", 0.95),
    ("vhost qcow2 / own raw, read QD32", "platter vhost qcow2", "platter vhost raw", "randread-qd32", 0, ">=", 0.95),
    ("vhost qcow2 / own raw, write QD32", "platter vhost qcow2", "platter vhost raw", "randwrite-qd32", 0, ">=", 0.95),
]


def data_rows(figures):
    rows = []
    for name, ours, theirs, workload, index, comparison, goal in GOALS:
        value = ratio(figures, ours, theirs, workload, index)
        if value is None:
            continue
        met = value >= goal if comparison == ">=" else value <= goal
        peers = {who: round(figures[(who, workload)][index], 1) for who in (ours, theirs)}
        rows.append(row(name, f"{comparison} {goal}", value, "ratio", met, peers))
    rows += [row(f"vhost qcow2 allocating QD32, CPU", "<= 10 us", figures[key][1], "us", figures[key][1] <= 10)
             for key in [("platter vhost qcow2", "alloc-qd32")] if key in figures]
    return rows


def table(figures, rows):
    systems = list(dict.fromkeys(system for system, _ in figures))
    workloads = list(dict.fromkeys(workload for _, workload in figures))
    lines = ["", "kIOPS (ratio to the floor) server CPU us for each I/O", ""]
    lines.append("| system | " + " | ".join(workloads) + " |")
    lines.append("|---" * (len(workloads) + 1) + "|")
    for system in systems:
        cells = []
        for workload in workloads:
            if (system, workload) not in figures:
                cells.append("")
                continue
            iops, cpu = figures[(system, workload)]
            over = ratio(figures, system, FLOOR, workload)
            cells.append(f"{iops / 1000:.1f} ({over:.2f}) {cpu:.1f}" if over is not None else f"{iops / 1000:.1f} {cpu:.1f}")
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    lines += ["", "| row | goal | value | met |", "|---|---|---|---|"]
    for entry in rows:
        lines.append(f"| {entry['name']} | {entry['goal']} | {entry['value']} {entry['unit']} | "
                     f"{'yes' if entry['met'] else 'no'} |")
    return "\n".join(lines)


def svg(figures):
    """Horizontal bars of kIOPS, one group for each workload."""
    systems = list(dict.fromkeys(system for system, _ in figures))
    workloads = list(dict.fromkeys(workload for _, workload in figures))
    bar, gap, left, width = 12, 26, 210, 520
    height = sum(gap + bar * sum((s, w) in figures for s in systems) for w in workloads) + 20
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 90}" height="{height}" '
           'font-family="sans-serif" font-size="10">']
    y = 10
    for workload in workloads:
        present = [s for s in systems if (s, workload) in figures]
        top = max(figures[(s, workload)][0] for s in present)
        y += gap - 10
        out.append(f'<text x="4" y="{y}" font-weight="bold">{workload}</text>')
        y += 6
        for system in present:
            iops, cpu = figures[(system, workload)]
            colour = "#1f6f8b" if system.startswith("platter") else "#b8b8b8"
            length = iops / top * width
            out.append(f'<text x="{left - 6}" y="{y + 9}" text-anchor="end">{system}</text>')
            out.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 2}" fill="{colour}"/>')
            out.append(f'<text x="{left + length + 4:.1f}" y="{y + 9}">{iops / 1000:.1f} k, {cpu:.1f} us</text>')
            y += bar
        y += 4
    out.append("</svg>")
    return "\n".join(out) + "\n"
