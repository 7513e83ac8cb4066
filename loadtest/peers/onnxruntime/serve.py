"""The bare loop of ONNX Runtime, one thread; a fused graph is run where its operators are usable here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnxruntime

sys.path.append(str(Path(__file__).parents[3]))
from loadtest.peers.bare_loop import Run, answer, graph_path, kit_description


def run_of(graph: str, operators: str | None) -> Run:
    """Return a graph's run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if operators:
        options.register_custom_ops_library(operators)
    session = onnxruntime.InferenceSession(graph_path(graph), options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, Any]) -> Any:
        return session.run(None, inputs)[0]

    return run


def main() -> None:
    """Answer until the input ends."""
    operators = kit_description().get("operators")
    graphs = ("plain", "fp32", "int8", *(("fused",) if operators else ()))
    answer({graph: run_of(graph, operators) for graph in graphs})


if __name__ == "__main__":
    main()
