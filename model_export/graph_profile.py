"""Where a graph's time goes: ONNX Runtime's own profile, added up by operator and output shape."""

from __future__ import annotations

import json
import math
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from bundle import operators
from bundle.golden import Arrays

_PRODUCTS = frozenset({"Gemm", "FusedGemm", "MatMul", "FusedMatMul", "QLinearConv", "MatMulIntegerToFloat"})


@dataclass(frozen=True)
class OperatorTime:
    """Nodes of one operator and output shape: how many, their median time together, their multiply-adds ×2."""

    operator: str
    shape: tuple[int, ...]
    nodes: int
    microseconds: float
    operations: int


def profile_graph(path: Path, inputs: Arrays, runs: int = 40) -> list[OperatorTime]:
    """Return the graph's operators by time, slowest first; a node's time is its median over `runs`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling = True
    operators.register(options)
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[float]] = defaultdict(list)
    about: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["name"]].append(event["dur"])
            about[event["name"]] = event["args"]
    found: dict[tuple[str, tuple[int, ...]], list[tuple[float, int]]] = defaultdict(list)
    for name, args in about.items():
        shape = _first_shape(args["output_type_shape"])
        found[args["op_name"], shape].append((float(np.median(times[name])), _operations(args, shape)))
    rows = [
        OperatorTime(operator, shape, len(nodes), sum(t for t, _ in nodes), sum(o for _, o in nodes))
        for (operator, shape), nodes in found.items()
    ]
    return sorted(rows, key=lambda row: -row.microseconds)


def _operations(args: dict[str, Any], shape: tuple[int, ...]) -> int:
    if args["op_name"] not in _PRODUCTS:
        return 0
    return 2 * math.prod(shape) * _first_shape(args["input_type_shape"])[-1]


def _first_shape(typed: list[dict[str, list[int]]]) -> tuple[int, ...]:
    return tuple(next(iter(typed[0].values()))) if typed else ()
