"""The panels of the checked-in dashboards and their queries, asked of a Prometheus as Grafana would ask them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

FOLDER = Path(__file__).parent / "grafana" / "dashboards"


@dataclass(frozen=True)
class Panel:
    """One panel of a dashboard.

    Attributes:
        dashboard: the dashboard's title.
        title: the panel's.
        kind: `row`, `stat` or `timeseries`.
        place: column, row, width and height in Grafana's grid of 24 columns.
        unit: Grafana's name of it.
        stacked: whether its lines are drawn on top of each other.
        steps: (from this value on, colour), the first from anywhere on.
        colours: (names of lines as a regular expression, colour).
        dashed: names of dashed lines as regular expressions.
        queries: (PromQL, legend) of each target.
    """

    dashboard: str
    title: str
    kind: str
    place: tuple[int, int, int, int]
    unit: str
    stacked: bool
    steps: tuple[tuple[float | None, str], ...]
    colours: tuple[tuple[str, str], ...]
    dashed: tuple[str, ...]
    queries: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Line:
    """One series of an answer: its labels, as the legend shows them, and (unix seconds, value) points."""

    name: str
    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


def read_panels(file: Path) -> list[Panel]:
    """Return the panels of a dashboard's JSON, in order; rows have no queries."""
    document = json.loads(file.read_text())
    return [_panel(document["title"], panel) for panel in document["panels"]]


def _panel(dashboard: str, panel: dict[str, Any]) -> Panel:
    grid = panel["gridPos"]
    defaults = panel.get("fieldConfig", {}).get("defaults", {})
    steps = defaults.get("thresholds", {}).get("steps", [])
    return Panel(
        dashboard=dashboard,
        title=panel["title"],
        kind=panel["type"],
        place=(grid["x"], grid["y"], grid["w"], grid["h"]),
        unit=defaults.get("unit", ""),
        stacked=defaults.get("custom", {}).get("stacking", {}).get("mode") == "normal",
        steps=tuple((step["value"], step["color"]) for step in steps),
        colours=tuple((names, value["fixedColor"]) for names, value in _overrides(panel, "color")),
        dashed=tuple(names for names, _ in _overrides(panel, "custom.lineStyle")),
        queries=tuple((target["expr"], target["legendFormat"]) for target in panel.get("targets", [])),
    )


def _overrides(panel: dict[str, Any], wanted: str) -> list[tuple[str, dict[str, Any]]]:
    """Return (names of lines as a regular expression, value) of a property wherever it is overridden."""
    return [
        (override["matcher"]["options"], given["value"])
        for override in panel.get("fieldConfig", {}).get("overrides", [])
        for given in override["properties"]
        if given["id"] == wanted
    ]


def ask(prometheus: str, expr: str, legend: str, *, start: float, end: float, rate_seconds: int) -> list[Line]:
    """Return what a query gives between two moments (unix seconds), 120 points at most; NaN is left out.

    Raises:
        ValueError: Prometheus refuses the query.
    """
    variables = {"$__rate_interval": f"{rate_seconds}s", "$__range": f"{end - start:.0f}s", "$instance": ".*"}
    for name, value in variables.items():
        expr = expr.replace(name, value)
    step = max(1.0, round((end - start) / 120))
    asked = {"query": expr, "start": str(start), "end": str(end), "step": str(step)}
    answer = httpx.post(f"{prometheus}/api/v1/query_range", data=asked, timeout=10).json()
    if answer["status"] != "success":
        msg = f"query {expr}: got {answer.get('error')}, want success"
        raise ValueError(msg)
    return [_line(result, legend) for result in answer["data"]["result"]]


def _line(result: dict[str, Any], legend: str) -> Line:
    labels = result["metric"]
    name = re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: labels.get(match[1], ""), legend)
    points = ((float(moment), float(value)) for moment, value in result["values"])
    return Line(name, labels, tuple((moment, value) for moment, value in points if value == value))
