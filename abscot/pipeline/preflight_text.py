"""The preflight as text for a terminal."""

import sys

from abscot.common.hardware import GPUS
from abscot.common.log import format_s
from abscot.common.table import Table
from abscot.model.shape import GB
from abscot.pipeline.preflight_lengths import PERCENTILES

MB = 1e6


def render(report: dict) -> str:
    """The report as text for a terminal."""
    data = report["data"]
    out = [
        f"{report['recipe']}: {report['base']}, {report['parameters']:,} parameters, "
        f"{report['trainable']:,} trained, {report['world']} GPUs",
        f"\nRows ({data['origin']}): {data['read']:,} read, {data['kept']:,} kept,"
        f" {data['truncated']:,} of them with a cut CoT",
    ]
    if data["rejected"]:
        lost = data["lost_tokens"]
        rows = [
            (reason, f"{n:,}", f"{lost[reason]:,}" if reason in lost else "not tokenised")
            for reason, n in sorted(data["rejected"].items())
        ]
        out.append(Table(("not used because", "rows", "tokens"), tuple(rows)).text())
    columns = (*(f"p{p}" for p in PERCENTILES), "sum")
    rows = [
        (name, *(f"{values[c]:,}" for c in columns)) for name, values in data["lengths"].items()
    ]
    out += ["", Table(("tokens", *columns), tuple(rows)).text(), ""]
    out += [_phase_table(report), "", _memory_table(report), ""]
    out += [_bin_table(report), "", *_lever_table(report)]
    out += [_stage_table(report), "", _hours_table(report), *_upper_bounds(report), ""]
    cpu = report["cpu_rank_bytes"]
    parts = ", ".join(f"{name} {size / GB:.1f}" for name, size in cpu.items() if name != "total")
    alone = "the optimizer's step and the loading come alone"
    out.append(
        f"A rank on a CPU instead: {cpu['total'] / GB:.1f} GB at its peak ({parts}; {alone})\n"
    )
    disk = ", ".join(f"{name} {_size(size)}" for name, size in report["disk"].items())
    out.append(f"Disk: {disk}")
    return "\n".join(out + [f"\nADVICE: {line}" for line in report["advice"]])


def _size(size_bytes: float) -> str:
    small = size_bytes < 0.1 * GB
    return f"{size_bytes / MB:,.1f} MB" if small else f"{size_bytes / GB:,.1f} GB"


def _phase_table(report: dict) -> str:
    heads = (
        "phase",
        "rows",
        "epochs by round",
        "steps per epoch",
        "tokens per epoch",
        "bins",
        "bins per step",
        "fill",
        "utilisation",
        "FLOPs per epoch",
    )
    rows = [
        (
            p["phase"],
            f"{p['rows']:,}",
            ", ".join(map(str, p["epochs"])),
            f"{p['steps_per_epoch']:,}",
            f"{p['tokens']:,}",
            f"{p['bins']:,}",
            f"{p['bins_per_step']:.0f}",
            f"{p['fill']:.3f}",
            f"{p['utilisation']:.3f}",
            f"{p['flops']:.2e}",
        )
        for p in report["phases"]
    ]
    return Table(heads, tuple(rows)).text()


def _memory_table(report: dict) -> str:
    parts = [name for name in report["memory"][0]["bytes"] if name != "host"]
    kinds = [f"{gpu.memory_gb:.0f} GB" for gpu in GPUS]
    heads = ("GB per GPU", *parts, "host", *kinds, *(f"GPU-h on {kind}" for kind in kinds))
    rows = [
        (
            m["setting"],
            *(f"{m['bytes'][name] / GB:.1f}" for name in (*parts, "host")),
            *("fits" if f else "no" for f in m["fits"].values()),
            *(f"{h:,.0f}" for h in m["training_gpu_hours"].values()),
        )
        for m in report["memory"]
    ]
    return Table(heads, tuple(rows)).text()


def _bin_table(report: dict) -> str:
    """Where the time goes."""
    parts = list(next(iter(report["hours"][0]["phases"].values()))["bin_s"])
    rows = [
        (
            f"{name}, {h['gpu']}",
            *(f"{of['bin_s'][part]:.3g}" for part in parts),
            f"{sum(of['bin_s'].values()):.3g}",
            f"{of['mfu']:.2f}",
        )
        for h in report["hours"]
        for name, of in h["phases"].items()
    ]
    return Table(("seconds of a mean bin", *parts, "total", "MFU"), tuple(rows)).text()


def _lever_table(report: dict) -> list[str]:
    if not report["levers"]:
        return []
    kinds = [h["gpu"] for h in report["hours"]]
    rows = [
        (
            lever["name"],
            f"{'on' if lever['on'] else 'OFF'}: {lever['state']}",
            *(f"{lever['gpu_hours'][gpu]:,.1f}" for gpu in kinds),
        )
        for lever in report["levers"]
    ]
    heads = ("GPU-h of training that it saves", "", *kinds)
    here = f"Packages are those of {sys.prefix}: plan in the environment that trains."
    return [Table(heads, tuple(rows)).text(), here, ""]


def _stage_table(report: dict) -> str:
    """Traces that are not here are drawn at random, in minutes."""
    stages = [h["stage_gpu_hours"] for h in report["hours"]]
    rows = [
        (stage, *(f"{of[stage]:,.2f}" for of in stages)) for stage in stages[0] if stages[0][stage]
    ]
    return Table(("GPU-h of a stage", *(h["gpu"] for h in report["hours"])), tuple(rows)).text()


def _upper_bounds(report: dict) -> list[str]:
    if not report["until_channel"]:
        return []
    return [
        f"Upper bounds: a phase ends before its epochs do once {report['until_channel']:.0%} of "
        "the answers come through (train.until_channel)"
    ]


def _hours_table(report: dict) -> str:
    heads = (
        "all",
        "MFU of training",
        "training GPU-h",
        "of the channel",
        "sampled traces GPU-h",
        "grounding stage GPU-h",
        f"wall on {report['world']}",
    )
    rows = [
        (
            h["gpu"],
            f"{h['mfu']:.2f}",
            f"{h['training_gpu_hours']:,.1f}",
            f"{h['channel_gpu_hours']:,.1f}",
            f"{h['trace_gpu_hours']:,.1f}",
            f"{h['grounding_gpu_hours']:,.1f}",
            format_s(3600 * h["wall_hours"]),
        )
        for h in report["hours"]
    ]
    return Table(heads, tuple(rows)).text()
