"""Draws a soak: one panel per kind of figure, one line per process, model swaps as thin lines."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtest.scenarios.flat import WARM_UP_SHARE, Series, trend

_COLUMNS = 2


def plot_soak(every: Sequence[Series], swaps_s: Sequence[float]) -> bytes:
    """Return all series as a PNG picture; those named `who: what` share the panel of what they are."""
    panels: dict[str, list[Series]] = {}
    for series in every:
        panels.setdefault(series.name.rpartition(": ")[2], []).append(series)
    rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(12, 2.8 * rows), layout="constrained")
    places = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for place, (what, lines) in zip(places, panels.items(), strict=False):
        _draw(place, what, lines, swaps_s)
    for place in places[len(panels) :]:
        place.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _draw(axes: Axes, what: str, lines: Sequence[Series], swaps_s: Sequence[float]) -> None:
    for swap_s in swaps_s:
        axes.axvline(swap_s / 60, color="0.85", linewidth=0.8)
    highest = 0.0
    for series in lines:
        who = series.name.rpartition(": ")[0] or what
        found = trend(series)
        verdict = "flat" if found.flat else "GROWS"
        label = f"{who}: {found.growth:+.2g} {series.unit}".rstrip() + f", {verdict}"
        axes.plot([at / 60 for at in series.at_s], series.values, label=label, linewidth=1.2)
        highest = max([highest, *(value for value in series.values if value == value)])
    if lines and lines[0].at_s:
        first, last = lines[0].at_s[0] / 60, lines[0].at_s[-1] / 60
        axes.axvspan(first, first + WARM_UP_SHARE * (last - first), color="0.93", zorder=0)
    unit = f", {lines[0].unit}" if lines[0].unit else ""
    axes.set(title=f"{what}{unit}", xlabel="minutes (grey: warm-up; lines: model versions)")
    axes.set_ylim(bottom=0, top=highest * (1.1 + 0.13 * len(lines)) or 1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")
