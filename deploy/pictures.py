"""Dashboards drawn by matplotlib from what their panels' queries give, laid out as Grafana lays them out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from deploy.queries import FOLDER, Line, Panel, ask, read_panels

matplotlib.use("agg")
RATE_SECONDS = 10
COLUMNS = 24
LEGEND_NAMES, LEGEND_ROWS = 4, 2
TICK_UNITS = {"reqps": "short", "rowsps": "short"}
"""Units too long for an axis."""
INK, PAPER, FRAME = "#1f2430", "#ffffff", "#d5d9e0"
COLOURS = {"green": "#2e8b57", "orange": "#e08a1e", "red": "#c8373a", "dark-red": "#7a1518", "text": INK}
CYCLE = ("#3274d9", "#e08a1e", "#2e8b57", "#c8373a", "#8f5fbf", "#19a0a8", "#b0a51e", "#d9548f", "#7a818f", "#5c4a3d")


def draw_dashboards(prometheus: str, out: Path, start: float, end: float) -> None:
    """Write one PNG per dashboard: its panels between two moments (unix seconds)."""
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(FOLDER.glob("*.json")):
        answers = [
            (panel, [line for expr, legend in panel.queries for line in _ask(prometheus, expr, legend, start, end)])
            for panel in read_panels(file)
        ]
        _draw(answers, start, end).savefig(out / f"dashboard-{file.stem}.png", dpi=110)


def _ask(prometheus: str, expr: str, legend: str, start: float, end: float) -> list[Line]:
    return ask(prometheus, expr, legend, start=start, end=end, rate_seconds=RATE_SECONDS)


def _draw(answers: list[tuple[Panel, list[Line]]], start: float, end: float) -> Figure:
    rows = max(panel.place[1] + panel.place[3] for panel, _ in answers)
    inches = 0.34
    figure = Figure(figsize=(14, rows * inches), facecolor="#f3f4f7")
    for panel, lines in answers:
        column, row, width, height = panel.place
        if panel.kind == "row":
            figure.text(0.008, 1 - (row + 0.7) / rows, panel.title, fontsize=12, fontweight="bold", color=INK)
            continue
        gap_x, gap_y = 0.004, 0.12 / rows
        box = (
            column / COLUMNS + gap_x,
            1 - (row + height) / rows + gap_y,
            width / COLUMNS - 2 * gap_x,
            height / rows - 2 * gap_y,
        )
        if panel.kind == "stat":
            _draw_number(figure.add_axes(box), panel, lines)
        else:
            frame = figure.add_axes(box, facecolor=PAPER, xticks=[], yticks=[])
            frame.spines[:].set_color(FRAME)
            left, below = 0.04 * 8 / 24, 0.75 / rows
            inner = (box[0] + left + 0.02, box[1] + 2.0 * below, box[2] - left - 0.03, box[3] - 3.6 * below)
            frame.text(0.02, 0.965, panel.title, va="top", fontsize=9.5, fontweight="bold", transform=frame.transAxes)
            _draw_lines(figure.add_axes(inner), frame, panel, lines, start, end)
    return figure


def _draw_number(axes: Axes, panel: Panel, lines: list[Line]) -> None:
    value = lines[0].points[-1][1] if lines and lines[0].points else None
    colour = "text"
    for least, name in panel.steps:
        if value is not None and (least is None or value >= least):
            colour = name
    coloured = len(panel.steps) > 1
    axes.set(xticks=[], yticks=[], facecolor=COLOURS[colour] if coloured else PAPER)
    axes.spines[:].set_color(FRAME)
    ink = "white" if coloured else INK
    told = "no data" if value is None else shown(value, panel.unit)
    place: dict[str, Any] = {"transform": axes.transAxes, "color": ink}
    axes.text(0.5, 0.42, told, ha="center", va="center", fontsize=22, fontweight="bold", **place)
    axes.text(0.04, 0.92, panel.title, ha="left", va="top", fontsize=9.5, **place)


def _draw_lines(axes: Axes, frame: Axes, panel: Panel, lines: list[Line], start: float, end: float) -> None:
    drawn = [line for line in lines if line.points]
    width = panel.place[2]
    highest = sorted(drawn, key=lambda line: -max(value for _, value in line.points))[:LEGEND_NAMES]
    top = 0.0
    moments = sorted({moment for line in drawn for moment, _ in line.points})
    below = [0.0] * len(moments)
    for place, line in enumerate(drawn):
        values = dict(line.points)
        colour = _colour(panel, line.name, place)
        if panel.stacked:
            above = [low + values.get(moment, 0.0) for low, moment in zip(below, moments, strict=True)]
            xs = [moment - start for moment in moments]
            axes.fill_between(xs, below, above, color=colour, alpha=0.55, linewidth=0, label=line.name)
            axes.plot(xs, above, color=colour, linewidth=1)
            below = above
        else:
            xs = [moment - start for moment, _ in line.points]
            above = list(values.values())
            style = "--" if any(re.search(names, line.name) for names in panel.dashed) else "-"
            label = line.name if line in highest else None
            axes.plot(xs, above, color=colour, linewidth=1.6, linestyle=style, label=label)
        top = max(top, *above)
    alarms = [least for least, name in panel.steps if name == "red" and least is not None]
    for alarm in alarms:
        axes.axhline(alarm, color=COLOURS["red"], linestyle="--", linewidth=1)
    axes.set(xlim=(0, end - start), ylim=(0, 1.1 * max([top, *alarms]) or 1.0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, TICK_UNITS.get(panel.unit, panel.unit))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    axes.tick_params(labelsize=7.5, length=2, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e8eaee", linewidth=0.8)
    if drawn:
        columns = _legend_columns(width, highest)
        handles, names = axes.get_legend_handles_labels()
        frame.legend(
            handles[: LEGEND_ROWS * columns], names[: LEGEND_ROWS * columns], loc="lower center", ncols=columns,
            fontsize=7, frameon=False, handlelength=1.2, columnspacing=1.0, borderaxespad=0.2,
        )  # fmt: skip


def _colour(panel: Panel, name: str, place: int) -> str:
    """Return the colour that the dashboard gives a line, else the next one of the palette."""
    given = [colour for names, colour in panel.colours if re.search(names, name)]
    return COLOURS[given[-1]] if given else CYCLE[place % len(CYCLE)]


def _legend_columns(width: int, lines: list[Line]) -> int:
    """Return how many names fit side by side into a panel of so many columns of Grafana's."""
    longest = max(len(line.name) for line in lines)
    return max(1, min(len(lines), width * 8 // (longest + 4)))


def shown(value: float, unit: str) -> str:
    """Return a value as Grafana shows its unit: `s`, `percentunit`, `reqps`, `rowsps`, `times` or `short`."""
    if unit == "s":
        if value >= 120:
            return f"{value / 60:.3g} min"
        return f"{value:.3g} s" if value >= 1 or value == 0 else f"{value * 1000:.3g} ms"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    suffix = {"reqps": " req/s", "rowsps": " rows/s", "times": " ×"}.get(unit, "")
    return (f"{value / 1000:.3g} k" if value >= 1000 else f"{value:.3g}") + suffix
