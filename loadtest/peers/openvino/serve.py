"""The bare loop of OpenVINO, one thread and one stream.

By itself it computes in bfloat16 where the processor has AMX, which is another model: `plain-bfloat16` is measured
beside `plain` in float32. Graphs that it does not read are not run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import openvino

sys.path.append(str(Path(__file__).parents[3]))
from loadtest.peers.bare_loop import Run, answer, graph_path

GRAPHS = {"plain": "plain", "plain-bfloat16": "plain", "fp32": "fp32", "int8": "int8"}


def run_of(graph: str, precision: str) -> Run:
    """Return a graph's run, by one request that is kept."""
    options = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = openvino.Core().compile_model(graph_path(graph), "CPU", options).create_infer_request()

    def run(inputs: dict[str, Any]) -> Any:
        return request.infer(inputs, share_inputs=True, share_outputs=True)[0]

    return run


def main() -> None:
    """Answer until the input ends."""
    runs = {}
    for name, graph in GRAPHS.items():
        try:
            runs[name] = run_of(graph, "bf16" if name.endswith("bfloat16") else "f32")
        except RuntimeError as exc:
            sys.stderr.write(f"{name}: {exc}\n")
    answer(runs)


if __name__ == "__main__":
    main()
