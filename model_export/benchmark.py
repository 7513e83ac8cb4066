"""How fast one core runs a network's serving graphs, against torch's own export of it.

Graphs that rank items' rows are timed with fetching the rows from a memory-mapped table of random items, by default far
more than caches hold. All graphs are run in turns within each round, so that a busy machine slows all alike; times are
CPU time of the calling thread (graphs have one thread), medians over all measured runs. Weights are random unless a run
is given: they decide no time, only what int8 changes.

Legend: N candidates.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from bundle import operators
from bundle.features import FeatureSchema
from bundle.golden import Arrays
from bundle.items_write import GrowingArray
from bundle.manifest import FUSED_ROWS_MODEL_FILE, ITEM_ROWS, MODEL_FILE, ROWS_MODEL_FILE, P, Tensor
from bundle.read import input_tensors
from model_export.fused_graph import FusedInt8Graph
from model_export.graph import ServingGraph
from model_export.graph_profile import profile_graph
from model_export.int8_graph import Int8Graph, convolve
from model_export.item_graphs import Cut, FloatCut, Rows
from model_export.item_int8 import IntegerCut, integer_cut
from model_export.items import ROWS_AT_ONCE, CutSession
from model_export.onnx_writer import GraphWriter, WeightsFile
from model_export.parity import SampleRows, open_session, sample_rows
from model_export.plain_export import CODES, VALUES, unrolled, write_plain_export
from model_export.quantise import quantise
from training.models.config import ModelConfig, ModelName
from training.models.initialise import initialise
from training.models.network import Network
from training.run import read_run

EXPORTED, UNROLLED, FP32, INT8 = "torch export", "torch export, unrolled", "fp32", "int8"
FUSED = "int8 fused"
CUTS: dict[str, Rows] = {"packed rows": "packed", "item cache": "layer1"}
REQUESTS = 40
RUNS = 4
_SAMPLE_ROWS = 4000
_CEILING_LAYERS, _CEILING_WIDTH = 8, 512


@dataclass(frozen=True)
class Subject:
    """What is measured: a network, its graph inputs, and rows to rank."""

    network: Network
    schema: FeatureSchema
    rows: SampleRows

    def items(self, count: int) -> SampleRows:
        """Return that many random items, each with the features of some row in each column."""
        random = np.random.default_rng(7)

        def drawn(columns: NDArray[Any]) -> NDArray[Any]:
            places = random.integers(len(columns), size=(count, columns.shape[1]))
            return np.take_along_axis(columns, places, axis=0)

        rows = self.rows
        return SampleRows(drawn(rows.codes), drawn(rows.values), rows.request_codes, rows.request_values)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Graph inputs."""
        return input_tensors(self.schema)


@dataclass(frozen=True)
class Graph:
    """A graph on disk, whether it takes whole requests, and the table whose rows it takes, if any."""

    path: Path
    session: onnxruntime.InferenceSession
    by_request: bool
    table: NDArray[np.generic] | None = None


def reference_subject(model: ModelName, *, request_features: int = 14, item_features: int = 10) -> Subject:
    """Return a random network over features of 20,000 values and 16 numbers each, five tasks."""
    torch.manual_seed(0)
    sides = ["user"] * request_features + ["item"] * item_features
    features = [
        {
            "name": f"{side}_{index}",
            "side": side,
            "kind": "categorical",
            "value_type": "integer",
            "embedding_size": 16,
            "encoding": {"type": "hash", "buckets": 20_000},
        }
        for index, side in enumerate(sides)
    ]
    schema = FeatureSchema.model_validate({"features": features})
    network = Network(ModelConfig(name=model, embedding_std=1.0), schema, 5).eval()
    initialise(network, np.linspace(0.3, 0.01, 5), tuple("abcde"))
    codes = np.random.default_rng(0).integers(0, 20_002, size=(_SAMPLE_ROWS, len(sides))).astype(np.int32)
    return Subject(network, schema, SampleRows(codes, np.zeros((len(codes), 0), np.float32), request_features, 0))


def run_subject(folder: Path) -> Subject:
    """Return the trained network of a run and the validation rows kept with it.

    Raises:
        RunInvalid: the run is not finished or broken.
    """
    run = read_run(folder)
    return Subject(run.trained_network(), run.schema, sample_rows(run))


def benchmark_graphs(
    subject: Subject,
    candidates: Sequence[int],
    *,
    rounds: int,
    items: int = 100_000,
    profile_at: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Return the figures: per N the time of each graph and its largest difference, ceilings, profiles."""
    with tempfile.TemporaryDirectory() as folder:
        say("writing graphs")
        population = subject.items(items)
        graphs = _write_graphs(subject, population, Path(folder))
        document: dict[str, Any] = {
            "model": subject.network.config.name,
            "onnxruntime": onnxruntime.__version__,
            "items": items,
            "weights_mb": {name: _size_mb(graph.path) for name, graph in graphs.items()},
            "candidates": [],
            "ceilings": _ceilings(Path(folder), rounds),
            "profiles": {},
        }
        for count in candidates:
            say(f"N = {count}")
            document["candidates"].append({"n": count, "graphs": _measure(subject, population, graphs, count, rounds)})
        if profile_at is not None:
            for name, graph in graphs.items():
                request = _request(subject, population, graph, profile_at, np.random.default_rng(1))
                inputs = _feeds(graph, request)
                document["profiles"][name] = [asdict(row) for row in profile_graph(graph.path, inputs)]
    return document


def _write_graphs(subject: Subject, items: SampleRows, folder: Path) -> dict[str, Graph]:
    widths = {"codes": subject.rows.codes.shape[1], "values": subject.rows.values.shape[1]}
    graphs: dict[str, Graph] = {}
    for name, network in ((EXPORTED, subject.network), (UNROLLED, unrolled(subject.network))):
        path = folder / f"{len(graphs)}.onnx"
        write_plain_export(network, path, **widths)
        graphs[name] = Graph(path, open_session(path), False)
    quantised = quantise(subject.network, *subject.rows.batch(0, len(subject.rows.codes)))
    network, tensors = subject.network, subject.tensors
    whole = {FP32: ServingGraph(network, tensors), INT8: Int8Graph(quantised, tensors)}
    for name, graph in whole.items():
        (folder / name).mkdir()
        graph.write(folder / name)
        path = folder / name / MODEL_FILE
        graphs[name] = Graph(path, open_session(path), True)
        for called, kind in CUTS.items():
            cut = FloatCut(network, tensors, kind) if name == FP32 else integer_cut(quantised, tensors, kind, [
                items.request(0, np.arange(len(items.codes)), tensors)
            ])  # fmt: skip
            graphs[f"{name}, {called}"] = _write_cut(folder / f"{name}-{kind}", cut, items, tensors)
    if operators.usable():
        (folder / FUSED).mkdir()
        FusedInt8Graph(quantised, tensors).write(folder / FUSED)
        graphs[FUSED] = Graph(folder / FUSED / MODEL_FILE, open_session(folder / FUSED / MODEL_FILE), True)
        for called in CUTS:
            stock = graphs[f"{INT8}, {called}"]
            path = stock.path.with_name(FUSED_ROWS_MODEL_FILE)
            graphs[f"{FUSED}, {called}"] = Graph(path, open_session(path), True, stock.table)
    return graphs


def _write_cut(folder: Path, cut: Cut, items: SampleRows, tensors: tuple[Tensor, ...]) -> Graph:
    """Write a cut graph and its table of rows, memory-mapped as the service has it."""
    folder.mkdir()
    weights = WeightsFile(folder)
    cut.write(folder, weights)
    if isinstance(cut, IntegerCut) and operators.usable():
        cut.write_fused(folder, weights)
    session, path = CutSession(folder), folder / "rows.npy"
    with GrowingArray(path, np.dtype(cut.row.dtype), int(cut.row.shape[1])) as array:
        for at in range(0, len(items.codes), ROWS_AT_ONCE):
            some = np.arange(at, min(at + ROWS_AT_ONCE, len(items.codes)))
            array.append(session.rows(items.request(0, some, tensors)))
    ranks = folder / ROWS_MODEL_FILE
    return Graph(ranks, open_session(ranks), True, np.asarray(np.load(path, mmap_mode="r")))


def _request(
    subject: Subject, items: SampleRows, graph: Graph, count: int, random: np.random.Generator
) -> tuple[Arrays, NDArray[np.int64]]:
    """Return the inputs of a random request of `count` candidates, as the graph takes them, and which items they are.

    Of a graph that takes rows, they are without the rows.
    """
    row, chosen = int(random.integers(len(items.codes))), random.integers(len(items.codes), size=count)
    given = {node.name for node in graph.session.get_inputs()}
    if graph.by_request:
        arrays = items.request(row, chosen, subject.tensors)
    else:
        codes, values = items.rows_of(row, chosen)
        arrays = {CODES: codes.numpy(), VALUES: values.numpy()}
    return {name: array for name, array in arrays.items() if name in given}, chosen


def _feeds(graph: Graph, request: tuple[Arrays, NDArray[np.int64]]) -> Arrays:
    """Return all inputs of a graph: those of a request and, where it takes them, rows fetched from its table."""
    inputs, chosen = request
    return inputs if graph.table is None else inputs | {ITEM_ROWS: np.take(graph.table, chosen, axis=0)}


def _measure(
    subject: Subject, items: SampleRows, graphs: dict[str, Graph], count: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Return each graph's median milliseconds, how often it fits into the export's, and its largest |Δp|."""
    requests = {
        name: [_request(subject, items, graph, count, np.random.default_rng(k)) for k in range(REQUESTS)]
        for name, graph in graphs.items()
    }
    exact = [graphs[EXPORTED].session.run(None, inputs)[0] for inputs, _ in requests[EXPORTED]]
    errors = {
        name: max(
            float(np.abs(graphs[name].session.run([_p(graph)], _feeds(graph, request))[0] - wanted).max())
            for request, wanted in zip(requests[name], exact, strict=True)
        )
        for name, graph in graphs.items()
    }
    times = _times_ms({name: _runner(graph, requests[name]) for name, graph in graphs.items()}, rounds)
    base = times[EXPORTED]
    return {name: {"ms": ms, "speedup": base / ms, "max_abs_change": errors[name]} for name, ms in times.items()}


def _p(graph: Graph) -> str:
    return P if graph.by_request else str(graph.session.get_outputs()[0].name)


def _runner(graph: Graph, requests: Sequence[tuple[Arrays, NDArray[np.int64]]]) -> Callable[[], object]:
    turn = itertools.cycle(requests)
    return lambda: graph.session.run(None, _feeds(graph, next(turn)))


def _times_ms(runners: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median CPU milliseconds of each, all of them in turns of one run unmeasured and `RUNS` measured."""
    taken: dict[str, list[int]] = {name: [] for name in runners}
    for round_number in range(rounds + 2):
        for name, run in runners.items():
            run()  # caches hold the previous graph's weights
            for _ in range(RUNS):
                begun = time.thread_time_ns()
                run()
                if round_number >= 2:
                    taken[name].append(time.thread_time_ns() - begun)
    return {name: float(np.median(ns)) / 1e6 for name, ns in taken.items()}


def _ceilings(folder: Path, rounds: int) -> dict[str, float]:
    """Return the GOP/s that one core reaches in nothing but products of [500, 512] and [512, 512]."""
    width, layers, rows = _CEILING_WIDTH, _CEILING_LAYERS, 500
    x_tensor, bias_tensor, y_tensor = (
        Tensor(name=name, dtype="float32", shape=(first, width))
        for name, first in (("x", "N"), ("bias", 1), ("y", "N"))
    )
    weights_LKK = np.random.default_rng(0).integers(-100, 100, size=(layers, width, width))
    paths = {name: folder / f"ceiling-{name}" for name in (FP32, INT8)}
    for name, path in paths.items():
        path.mkdir()
        w = GraphWriter()
        x, bias = "x", w.reshape("bias", [-1])
        if name == FP32:
            for weight in weights_LKK:
                x = w.op("Gemm", x, w.constant(weight.astype(np.float32) / 1000), bias)
        else:
            one, zero = w.constant(np.array(1, np.float32)), w.constant(np.array(0, np.uint8))
            x = w.reshape(w.op("QuantizeLinear", x, one, zero), [1, -1, 1, width])
            whole = w.op("Cast", bias, to=6)
            for weight in weights_LKK:
                x = convolve(w, x, zero, weight.astype(np.int8), np.full(width, 1e-4, np.float32), whole)
            x = w.op("DequantizeLinear", w.reshape(x, [-1, width]), one, zero)
        w.write(path, MODEL_FILE, [x_tensor, bias_tensor], [(y_tensor, x)])
    random = np.random.default_rng(0)
    inputs: Arrays = {"x": random.uniform(0, 255, size=(rows, width)).astype(np.float32)}
    inputs["bias"] = np.zeros((1, width), dtype=np.float32)
    sessions = {name: Graph(path, open_session(path / MODEL_FILE), True) for name, path in paths.items()}
    nothing = np.empty(0, dtype=np.int64)
    runners = {name: _runner(graph, [(inputs, nothing)]) for name, graph in sessions.items()}
    operations = 2 * rows * width * width * layers
    return {name: operations / ms / 1e6 for name, ms in _times_ms(runners, rounds).items()}


def _size_mb(path: Path) -> float:
    beside = [path] if path.name not in (MODEL_FILE, ROWS_MODEL_FILE) else list(path.parent.iterdir())
    return sum(file.stat().st_size for file in beside) / 1e6
