"""Draws measurements; knows nothing of how they were made."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from loadtest.compare import Comparison
from loadtest.measure import Measurement, decode_histogram
from loadtest.sweep import Slo, Sweep

_TICKS = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999)


def plot_run(title: str, measurement: Measurement) -> bytes:
    """Return latency by percentile and the run's timeline as a PNG picture."""
    figure = Figure(figsize=(9, 8), layout="constrained")
    above, below = figure.subplots(2, 1)
    draw_percentiles(above, {title: measurement.histogram})
    draw_timeline(below, measurement)
    return _png(figure)


def plot_sweep(title: str, sweep: Sweep, slo: Slo) -> bytes:
    """Return latency against offered rate, and the curves of the rates, as a PNG picture."""
    figure = Figure(figsize=(9, 8), layout="constrained")
    above, below = figure.subplots(2, 1)
    steps = sorted(sweep.steps, key=lambda step: step.rate_per_s)
    rates = [step.measurement.offered_rate for step in steps]
    for name in ("p50", "p95", "p99"):
        above.plot(rates, [step.measurement.latency_ms[name] for step in steps], label=name, marker="o")
    above.axhline(slo.p99_ms, color="tab:red", linestyle="--", label=f"SLO p99 ≤ {slo.p99_ms:g} ms")
    if sweep.highest_rate_per_s is not None:
        label = f"highest rate that holds: {sweep.highest_rate_per_s:.0f}/s"
        above.axvline(sweep.highest_rate_per_s, color="tab:green", linestyle=":", label=label)
    above.set_yscale("log")
    above.yaxis.set_major_formatter(ScalarFormatter())
    above.yaxis.set_minor_formatter(ScalarFormatter())
    errors = above.twinx()
    shares = [100 * step.measurement.error_share for step in steps]
    errors.plot(rates, shares, color="tab:red", marker="x", alpha=0.5)
    errors.set_ylabel("not answered 2xx, %", color="tab:red")
    errors.set_ylim(0, max(1.0, *shares))
    above.set(title=title, xlabel="offered requests a second", ylabel="latency of 2xx from intended send, ms")
    above.grid(alpha=0.3)
    above.legend()
    draw_percentiles(below, {f"{step.rate_per_s:.0f}/s": step.measurement.histogram for step in steps})
    below.set_ylim(top=min(below.get_ylim()[1], 4 * slo.p99_ms))
    return _png(figure)


def plot_comparison(comparison: Comparison) -> bytes:
    """Return each figure's ratio by round, with the mean and its interval, as a PNG picture."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, len(comparison.ratios))
    for axes, ratio in zip(panels, comparison.ratios, strict=True):
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.axhspan(ratio.low, ratio.high, alpha=0.2, label="95 % interval of the mean")
        axes.axhline(ratio.mean, label="mean", linestyle="--")
        axes.plot(range(1, len(ratio.by_round) + 1), ratio.by_round, "o")
        axes.set(title=f"{ratio.figure}: {ratio.verdict}", xlabel="round", ylabel="ratio to the reference")
        axes.grid(alpha=0.3)
    panels[0].legend()
    return _png(figure)


def draw_percentiles(axes: Axes, histograms: dict[str, str]) -> None:
    """Draw encoded histograms as latency against percentile, on the usual scale of 1 / (1 - percentile)."""
    farthest = 2.0
    for label, encoded in histograms.items():
        histogram = decode_histogram(encoded)
        total = histogram.get_total_count()
        if not total:
            continue
        farthest = max(farthest, float(total))
        share = 1.0 - np.logspace(0, -np.log10(total), 200)
        values = [histogram.get_value_at_percentile(100.0 * float(s)) / 1e3 for s in share]
        axes.plot(1.0 / (1.0 - share), values, label=label, drawstyle="steps-post")
    axes.set_xscale("log")
    ticks = [tick for tick in _TICKS if 1.0 / (1.0 - tick / 100) <= farthest * 1.01]
    axes.set_xticks([1.0 / (1.0 - tick / 100) for tick in ticks], [f"{tick:g} %" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set(xlabel="percentile of 2xx answers", ylabel="latency from intended send, ms")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def draw_timeline(axes: Axes, measurement: Measurement) -> None:
    """Draw p50, p99 and maximum by second, and failures a second on the right."""
    at_s = [second.at_s + 0.5 for second in measurement.seconds]
    for name in ("p50_ms", "p99_ms", "max_ms"):
        values = [getattr(second, name) for second in measurement.seconds]
        axes.plot(at_s, values, label=name.removesuffix("_ms"), marker=".")
    axes.set(xlabel="second of intended send", ylabel="latency, ms")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    right = axes.twinx()
    right.bar(at_s, [second.failed for second in measurement.seconds], width=0.8, color="tab:red", alpha=0.3)
    right.set_ylabel("failed requests a second", color="tab:red")
    right.set_ylim(bottom=0, top=max(1, *(second.failed for second in measurement.seconds), 1))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
