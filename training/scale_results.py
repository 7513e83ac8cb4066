"""The figures of `training.scale` as tables to read and a picture; knows nothing of how they were measured."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from training.scale import STAGES, Document

_NAMES = {"simulate": "generate", "prepare": "prepare", "train": "train one epoch"}


def scale_text(document: Document) -> str:
    """Return the tables of a measurement as Markdown."""
    lines = ["| rows | stage | rows/s of CPU | CPU s | wall s | peak resident | anonymous | mapped files |"]
    lines.append("|---:|---|---:|---:|---:|---:|---:|---:|")
    for size in document["sizes"]:
        for stage in STAGES:
            found = size[stage]
            lines.append(
                f"| {size['rows']:,} | {_NAMES[stage]} | {found['rows_per_cpu_s']:,.0f} | {found['cpu_s']:,.0f} "
                f"| {found['wall_s']:,.0f} | {found['peak_resident_mib']:,.0f} MiB "
                f"| {found['peak_anonymous_mib']:,.0f} MiB | {found['peak_file_mib']:,.0f} MiB |"
            )
    lines += ["", "| rows | raw files | prepared folder | trained on | validation AUC click, buy |"]
    lines.append("|---:|---:|---:|---:|---|")
    for size in document["sizes"]:
        aucs = ", ".join(f"{auc:.4f}" if auc is not None else "–" for auc in size["validation_auc"].values())
        raw, prepared = (size[name] / 2**30 for name in ("raw_bytes", "prepared_bytes"))
        lines.append(f"| {size['rows']:,} | {raw:.2f} GiB | {prepared:.2f} GiB | {size['train']['rows']:,} | {aucs} |")
    lines += [
        "",
        "| estimate for | prepare | train one epoch | raw files | prepared folder | anonymous memory, train |",
    ]
    lines.append("|---:|---:|---:|---:|---:|---:|")
    for found in document["estimates"]:
        lines.append(
            f"| {found['rows']:,} | {found['cpu_h']['prepare']:.1f} h | {found['cpu_h']['train']:.1f} h "
            f"| {found['raw_gib']:,.0f} GiB | {found['prepared_gib']:,.0f} GiB "
            f"| {found['train_anonymous_mib']:,.0f} MiB |"
        )
    return "\n".join(lines) + "\n"


def draw_scale(document: Document) -> bytes:
    """Return a PNG: rows per second of CPU, and peak memory, against rows."""
    rows = [size["rows"] for size in document["sizes"]]
    canvas = Figure(figsize=(10, 4), layout="constrained")
    speed, memory = canvas.subplots(1, 2)
    for number, stage in enumerate(STAGES):
        found = [size[stage] for size in document["sizes"]]
        colour = f"C{number}"
        speed.plot(rows, [f["rows_per_cpu_s"] for f in found], marker="o", color=colour, label=_NAMES[stage])
        memory.plot(rows, [f["peak_resident_mib"] for f in found], marker="o", color=colour, label=_NAMES[stage])
        anonymous = [f["peak_anonymous_mib"] for f in found]
        memory.plot(rows, anonymous, marker=".", linestyle=":", color=colour, label=f"{_NAMES[stage]}, anonymous")
    memory.axhline(4096, color="black", linewidth=0.8)
    speed.set(title="rows per second of CPU, one thread", xlabel="rows", xscale="log")
    memory.set(title="peak resident memory, MiB", xlabel="rows", xscale="log")
    for panel in (speed, memory):
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(fontsize="x-small")
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
