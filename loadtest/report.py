"""Shows measurements: a table, a JSON document written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from loadtest.environment import describe_environment
from loadtest.measure import Measurement
from loadtest.run import Load
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


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write the document to `path` by way of a file beside it; NaN becomes null."""
    data = json.dumps(_without_nan(document), indent=1).encode() + b"\n"
    write_bytes(path, data)


def write_bytes(path: Path, data: bytes) -> None:
    """Write the bytes to `path` by way of a file beside it, so that no reader sees a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ms(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}" if value < 100 else f"{value:.0f}"
