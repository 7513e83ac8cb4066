"""Shows measurements: tables, JSON documents, HTML pages; knows nothing of files."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtest.compare import Comparison
from loadtest.environment import describe_environment
from loadtest.measure import Measurement
from loadtest.run import Load
from loadtest.sweep import Slo, Sweep
from loadtest.traffic import Target

FORMAT = 1


def run_document(target: Target, load: Load, measurement: Measurement) -> dict[str, Any]:
    """Return a run as a JSON document: target, settings, environment, figures."""
    return {
        "format": FORMAT,
        "kind": "run",
        "url": target.url,
        "load": asdict(load),
        "environment": describe_environment(),
        "result": asdict(measurement) | {"error_share": measurement.error_share},
    }


def run_table(target: Target, load: Load, measurement: Measurement) -> Table:
    """Return the figures of a run as a table to print."""
    table = Table(title=f"{target.url}: {load.rate_per_s:g} requests/s for {load.duration_s:g} s, {load.arrivals}")
    table.add_column("")
    for name in measurement.latency_ms:
        table.add_column(name, justify="right")
    for label, figures in (
        ("latency of 2xx, ms", measurement.latency_ms),
        ("latency of all, ms", measurement.all_latency_ms),
        ("own lag, ms", measurement.lag_ms),
    ):
        table.add_row(label, *(_ms(value) for value in figures.values()))
    statuses = ", ".join(f"{count} × {status}" for status, count in measurement.statuses.items())
    table.caption = (
        f"offered {measurement.offered_rate:.1f}/s, achieved {measurement.achieved_rate:.1f}/s, "
        f"{measurement.connections} connections; {statuses or 'no requests'}"
    )
    return table


def sweep_document(target: Target, load: Load, slo: Slo, sweep: Sweep) -> dict[str, Any]:
    """Return a sweep as a JSON document."""
    return {
        "format": FORMAT,
        "kind": "sweep",
        "url": target.url,
        "load": asdict(load),
        "slo": asdict(slo),
        "environment": describe_environment(),
        "result": asdict(sweep),
    }


def sweep_table(target: Target, slo: Slo, sweep: Sweep) -> Table:
    """Return the steps of a sweep, by rate, as a table to print."""
    title = f"{target.url}: p99 ≤ {slo.p99_ms:g} ms, errors ≤ {slo.max_error_share:.2%}"
    table = Table("rate", "achieved", "p50", "p95", "p99", "max", "errors", "own lag p99", "holds", title=title)
    for step in sorted(sweep.steps, key=lambda step: step.rate_per_s):
        figures = step.measurement
        latency = [_ms(figures.latency_ms[name]) for name in ("p50", "p95", "p99", "max")]
        table.add_row(
            f"{step.rate_per_s:.1f}",
            f"{figures.achieved_rate:.1f}",
            *latency,
            f"{figures.error_share:.2%}",
            _ms(figures.lag_ms["p99"]),
            step.why_not or "yes",
        )
    table.caption = sweep.summary
    return table


def comparison_document(rounds: dict[str, Any], reference: str, comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as a JSON document: the candidate's rounds, the name of the reference, the verdict."""
    return rounds | {"kind": "comparison", "reference": reference, "result": asdict(comparison)}


def comparison_table(comparison: Comparison) -> Table:
    """Return the ratios of a comparison as a table to print."""
    names = ("figure", "reference", "candidate", "ratio", "95 % interval", "p", "verdict")
    table = Table(*names, title=f"{comparison.rounds} paired rounds")
    for ratio in comparison.ratios:
        table.add_row(
            ratio.figure,
            f"{ratio.reference:.2f}",
            f"{ratio.candidate:.2f}",
            f"{ratio.mean:.3f}",
            f"{ratio.low:.3f} – {ratio.high:.3f}",
            f"{ratio.p_value:.3f}",
            ratio.verdict,
        )
    return table


def json_bytes(document: dict[str, Any]) -> bytes:
    """Return the document as JSON text; NaN becomes null."""
    return json.dumps(_without_nan(document), indent=1, allow_nan=False).encode() + b"\n"


def html_page(title: str, tables: Sequence[Table], png: bytes) -> bytes:
    """Return a page that stands alone: the tables as text, the environment, the picture inside."""
    console = Console(record=True, file=io.StringIO(), width=140)
    for table in tables:
        console.print(table)
    environment = json.dumps(describe_environment(), indent=1)
    page = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title></head>'
        f'<body style="font-family: sans-serif"><h1>{html.escape(title)}</h1>'
        f"<pre>{html.escape(console.export_text())}</pre>"
        f'<img alt="plot" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<h2>Measured on</h2><pre>{html.escape(environment)}</pre></body></html>\n"
    )
    return page.encode()


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ms(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}" if value < 100 else f"{value:.0f}"
