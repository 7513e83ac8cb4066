"""Shows what scenarios found: tables, a JSON document, a timeline; knows nothing of how it was found."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from loadtest.environment import describe_environment
from loadtest.report import FORMAT
from loadtest.scenarios.scenario import Scenario, ScenarioResult, Timeline


def list_table(reasons: Mapping[Scenario, str | None]) -> Table:
    """Return all scenarios with what this machine lacks for them."""
    table = Table("scenario", "what is done, and what must hold", box=None, pad_edge=False)
    for scenario, lacking in reasons.items():
        table.add_row(scenario.name, scenario.summary + (f" (skipped here, {lacking})" if lacking else ""))
    return table


def result_table(scenario: Scenario, result: ScenarioResult) -> Table:
    """Return a scenario's checks as a table to print."""
    table = Table("check", "expected", "found", "", title=f"{scenario.name}: {scenario.summary}", title_justify="left")
    for check in result.checks:
        table.add_row(check.name, check.expected, check.found, "pass" if check.passed else "FAIL")
    table.caption = "\n".join(f"{name} {_short(value)}" for name, value in result.figures.items())
    table.caption_justify = "left"
    return table


def verdict_table(results: Mapping[Scenario, ScenarioResult | str]) -> Table:
    """Return one line per scenario: passed, failed, or why it was skipped."""
    table = Table("scenario", "checks passed", "verdict")
    for scenario, result in results.items():
        if isinstance(result, str):
            table.add_row(scenario.name, "–", f"skipped: {result}")
        else:
            passed = sum(check.passed for check in result.checks)
            table.add_row(scenario.name, f"{passed} of {len(result.checks)}", "pass" if result.passed else "FAIL")
    return table


def scenario_document(
    results: Mapping[Scenario, ScenarioResult | str], seconds: Mapping[str, float], settings: Mapping[str, object]
) -> dict[str, Any]:
    """Return everything found as a JSON document."""
    return {
        "format": FORMAT,
        "kind": "scenarios",
        "settings": dict(settings),
        "environment": describe_environment(),
        "results": {
            scenario.name: {"skipped": result}
            if isinstance(result, str)
            else {
                "passed": result.passed,
                "seconds": round(seconds[scenario.name], 1),
                "checks": [asdict(check) for check in result.checks],
                "figures": dict(result.figures),
            }
            for scenario, result in results.items()
        },
    }


def plot_result(scenario: Scenario, result: ScenarioResult) -> bytes | None:
    """Return a scenario's picture as PNG, None where it has none."""
    if result.draw is not None:
        return result.draw()
    return None if result.timeline is None else plot_timeline(scenario.name, result.timeline)


def plot_timeline(title: str, timeline: Timeline) -> bytes:
    """Return every request's latency by intended send time, failures in red, with what was done, as a PNG picture."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots()
    for ok, colour, label in ((True, "tab:blue", "answered 2xx"), (False, "tab:red", "failed")):
        chosen = timeline.ok == ok
        name = f"{label} ({int(chosen.sum()):,})"
        latency_ms = np.maximum(timeline.latency_ms[chosen], 0.1)
        size, marker = (6, ".") if ok else (30, "x")
        axes.scatter(timeline.at_s[chosen], latency_ms, s=size, marker=marker, color=colour, label=name)
    if len(timeline.at_s):
        axes.set_yscale("log")
        for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            set_formatter(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "125" else "")
    named: set[str] = set()
    colours = dict(zip(dict.fromkeys(name for _, name in timeline.events), _EVENT_COLOURS * 20, strict=False))
    for at_s, name in timeline.events[:_MOST_EVENTS]:
        axes.axvline(at_s, color=colours[name], linewidth=1, label=None if name in named else name)
        named.add(name)
    axes.set(title=title, xlabel="intended send time, s", ylabel="latency, ms")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


_EVENT_COLOURS = ["tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan"]
_MOST_EVENTS = 60


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(entry)}" for name, entry in value.items())
    return value if isinstance(value, str) else json.dumps(value)
