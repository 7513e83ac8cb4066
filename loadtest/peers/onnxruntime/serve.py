"""The bare loop: ONNX Runtime in process, no server; reads `GRAPH N SECONDS` lines, answers with JSON lines.

A graph that it has not, as the operators of a fused one are not usable here, is answered with nothing, {}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

KIT = Path(os.environ["PEER_KIT"])
DESCRIPTION = json.loads((KIT / "kit.json").read_text())
REQUEST_CODES, OPERATORS = DESCRIPTION["request_codes"], DESCRIPTION.get("operators")


def session(path: Path) -> Any:
    """Return a session of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if OPERATORS:
        options.register_custom_ops_library(OPERATORS)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def inputs_of(graph: str, count: int) -> list[dict[str, Any]]:
    """Return the kit's requests as the graph takes them: whole rows, or the request's part once."""
    requests = np.load(KIT / f"inputs-{count}.npz")["codes"]
    if graph == "plain":
        return [{"codes": codes} for codes in requests]
    parts = (codes[:1, :REQUEST_CODES] for codes in requests), (codes[:, REQUEST_CODES:] for codes in requests)
    pairs = zip(*parts, strict=True)
    return [{"request_codes": r.copy(), "item_codes": np.ascontiguousarray(i)} for r, i in pairs]


def measure(runner: Any, requests: list[dict[str, Any]], seconds: float) -> dict[str, float]:
    """Return how many requests were run, how long that took, and the CPU time of it."""
    for given in requests:
        runner.run(None, given)
    done, begun, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begun < seconds:
        runner.run(None, requests[done % len(requests)])
        done += 1
    return {"requests": done, "seconds": time.perf_counter() - begun, "cpu_s": time.process_time() - cpu}


def main() -> None:
    """Answer until the input ends."""
    graphs = {"plain": session(KIT / "plain.onnx")}
    graphs |= {name: session(KIT / name / "dlen" / "1" / "model.onnx") for name in ("fp32", "int8")}
    if OPERATORS:
        graphs["fused"] = session(KIT / "int8" / "dlen" / "1" / "model.fused.onnx")
    for line in sys.stdin:
        graph, count, seconds = line.split()
        figures = measure(graphs[graph], inputs_of(graph, int(count)), float(seconds)) if graph in graphs else {}
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
