"""What bare loops have in common: a runtime in process, no server, run on the kit's requests as fast as it goes.

A loop's process reads lines `GRAPH N SECONDS` and answers each with a line of JSON: requests, seconds, CPU seconds, and
how far P(task) lies from the plain export's at most; {} where it has no such graph. Runs in the peers' environments,
so that nothing but numpy is imported.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

KIT = Path(os.environ.get("PEER_KIT", "."))
Run = Callable[[dict[str, Any]], Any]
"""Inputs by name → P(task) [N, T], every graph's first output."""


def kit_description() -> dict[str, Any]:
    """Return what the kit says of itself."""
    description: dict[str, Any] = json.loads((KIT / "kit.json").read_text())
    return description


def graph_path(graph: str) -> str:
    """Return the file of torch's own export, `plain`, or of the service's graph: fp32, int8, fused."""
    if graph == "plain":
        return str(KIT / "plain.onnx")
    model = "model.fused.onnx" if graph == "fused" else "model.onnx"
    return str(KIT / ("int8" if graph == "fused" else graph) / "dlen" / "1" / model)


def answer(runs: Mapping[str, Run]) -> None:
    """Answer by graphs, each by its name, until the input ends; `plain-…` takes what `plain` does."""
    request_codes = kit_description()["request_codes"]
    for line in sys.stdin:
        graph, count, seconds = line.split()
        figures = {}
        if graph in runs:
            arrays = np.load(KIT / f"inputs-{count}.npz")
            parts = None if graph.partition("-")[0] == "plain" else request_codes
            requests = [_inputs(codes, parts) for codes in arrays["codes"]]
            figures = _measure(runs[graph], requests, float(seconds))
            figures["largest_error"] = float(np.abs(runs[graph](requests[0]) - arrays["p"]).max())
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()


def _inputs(codes_NC: Any, request_codes: int | None) -> dict[str, Any]:
    """Return a request as a graph takes it: whole rows, or the request's part once."""
    if request_codes is None:
        return {"codes": codes_NC}
    items = np.ascontiguousarray(codes_NC[:, request_codes:])
    return {"request_codes": codes_NC[:1, :request_codes].copy(), "item_codes": items}


def _measure(run: Run, requests: list[dict[str, Any]], seconds: float) -> dict[str, float]:
    """Return how many requests were run, how long that took, and the CPU time of it."""
    for given in requests:
        run(given)
    done, begun, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begun < seconds:
        run(requests[done % len(requests)])
        done += 1
    return {"requests": done, "seconds": time.perf_counter() - begun, "cpu_s": time.process_time() - cpu}
