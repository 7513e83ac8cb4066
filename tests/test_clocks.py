"""Durations are measured by clocks that nobody sets: wall clocks are read where a moment is told, and nowhere else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("bundle", "fusion", "service", "loadtest")
WALL = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
TOLD = {
    "service/keys.py": "a file's time stamp is held against now; a wrong clock costs one more read of the file",
    "service/tracing.py": "spans carry the time of day",
    "loadtest/environment.py": "a report says when it was made",
    "loadtest/scenarios/clock_jump.py": "a ranker's wall clock is held against this machine's",
}


def wall_clocks(source: str) -> list[str]:
    """Return the wall clocks that a module reads, by whatever it imported them as."""
    tree = ast.parse(source)
    origins = {
        name.asname or name.name: f"{node.module}.{name.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    origins |= {
        name.asname or name.name: name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for name in node.names
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            head, _, rest = ast.unparse(node).partition(".")
            path = ".".join(filter(None, (origins.get(head, head), rest)))
            found += [wall for wall in WALL if path == wall or path.endswith(f".{wall}")]
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import time\ntime.time()", ["time.time"]),
        ("from time import time as now\nnow()", ["time.time"]),
        ("import time as t\nclock = t.time_ns", ["time.time_ns"]),
        ("import datetime\ndatetime.datetime.now(datetime.UTC)", ["datetime.now"]),
        ("from datetime import datetime\ndatetime.utcnow()", ["datetime.utcnow"]),
        ("import time\ntime.monotonic() + time.perf_counter()", []),
    ],
)
def test_wall_clocks_are_found(source, found):
    assert wall_clocks(source) == found


def test_wall_clocks_are_read_only_where_a_moment_is_told():
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    reading = {str(file.relative_to(ROOT)) for file in files if wall_clocks(file.read_text())}
    peers = {name for name in reading if name.startswith("loadtest/peers/")}
    assert reading - peers == set(TOLD)
