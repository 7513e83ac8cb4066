"""Draws an overload: what is answered of what is asked, how soon, and a burst from before to after."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtest.drive import Outcome
from loadtest.scenarios.levels import Level

_WINDOW_S = 0.25


def plot_overload(levels: Sequence[Level], burst: Outcome, burst_s: tuple[float, float]) -> bytes:
    """Return the picture as PNG."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    names = [level.name for level in levels]
    goodput = figure.add_subplot(grid[0, 0])
    bars = goodput.bar(names, [100 * level.of_capacity for level in levels], color="tab:blue")
    goodput.bar_label(bars, fmt="%.0f %%")
    goodput.set(
        title="goodput", xlabel="asked, in capacities (deadline, where tight)", ylabel="% of capacity", ylim=(0, 115)
    )
    times = figure.add_subplot(grid[0, 1])
    for name, column, colour in (("good_ms", 1, "tab:blue"), ("refused_ms", 1, "tab:red")):
        label = ("answered 2xx" if name == "good_ms" else "refused 503") + ", p99"
        times.plot(names, [getattr(level, name)[column] for level in levels], marker="o", color=colour, label=label)
    times.set(
        title="time to the answer", xlabel="asked, in capacities (deadline, where tight)", ylabel="ms", yscale="log"
    )
    times.grid(alpha=0.3)
    times.legend()
    _draw_burst(figure.add_subplot(grid[1, :]), burst, burst_s)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _draw_burst(axes: Axes, outcome: Outcome, burst_s: tuple[float, float]) -> None:
    at_s = np.arange(0, float(outcome.send_ns[-1]) / 1e9, _WINDOW_S)
    edges = np.searchsorted(outcome.send_ns, np.append(at_s, at_s[-1] + _WINDOW_S) * 1e9)
    good_per_s, refused_per_s, p99_ms = [], [], []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        good = (outcome.status[low:high] >= 200) & (outcome.status[low:high] < 300)
        good_per_s.append(good.sum() / _WINDOW_S)
        refused_per_s.append((~good).sum() / _WINDOW_S)
        p99_ms.append(np.percentile(outcome.latency_ns[low:high][good], 99) / 1e6 if good.any() else np.nan)
    axes.axvspan(*burst_s, color="tab:orange", alpha=0.15, label="burst")
    axes.plot(at_s, good_per_s, color="tab:blue", label="2xx a second")
    axes.plot(at_s, refused_per_s, color="tab:red", label="refused a second")
    axes.set(title="a burst", xlabel="intended send time, s", ylabel="requests a second", yscale="symlog")
    axes.grid(alpha=0.3)
    right = axes.twinx()
    right.plot(at_s, p99_ms, color="tab:green", linestyle=":", label="p99 of 2xx (right)")
    right.set(ylabel="ms")
    right.set_ylim(bottom=0)
    lines = [one.get_legend_handles_labels() for one in (axes, right)]
    axes.legend(sum((handles for handles, _ in lines), []), sum((labels for _, labels in lines), []), loc="upper right")
