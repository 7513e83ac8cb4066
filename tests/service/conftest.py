"""A tiny bundle, a fusion config, and the real service on a real port."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from bundle.features import FeatureSchema
from bundle.files import new_folder
from bundle.golden import Golden, golden_bytes
from bundle.manifest import Manifest, Parity, Provenance, Task, list_files, write_manifest
from bundle.read import input_tensors, output_tensors
from loadtest.processes import workers_below

TASKS = ("click", "like", "hate")
SCHEMA = FeatureSchema.model_validate(
    {
        "features": [
            {"name": "activity", "side": "user", "kind": "categorical", "value_type": "string",
             "encoding": {"type": "vocabulary", "values": ["low", "mid", "high"]}},
            {"name": "age", "side": "user", "kind": "numeric",
             "encoding": {"type": "standardise", "mean": 30.0, "deviation": 10.0}},
            {"name": "hour", "side": "context", "kind": "categorical", "value_type": "integer",
             "encoding": {"type": "hash", "buckets": 24}},
            {"name": "author", "side": "item", "kind": "categorical", "value_type": "integer",
             "encoding": {"type": "hash", "buckets": 100}},
            {"name": "quality", "side": "item", "kind": "numeric",
             "encoding": {"type": "standardise", "mean": 0.0, "deviation": 1.0}},
            {"name": "tags", "side": "item", "kind": "categorical_list", "value_type": "string", "max_length": 3,
             "encoding": {"type": "hash", "buckets": 50}},
        ]
    }
)  # fmt: skip
FUSION = """
format: 1
default: feed
negative_tasks: [hate]
policies:
  feed:
    formula: weighted_sum
    signal: joint
    weights: {click: 1.0, like: 3.0, hate: -2.0}
    p_up: 0.5
"""


def graph(tasks: int, seed: int, fault: str | None = None) -> onnx.ModelProto:
    """A DLEN in miniature: one linear layer to u, a_t, b_t, mixed as Eq. 1 and 4 say.

    `fault` "nan" gives NaN for items of quality below -5, "slow" takes some 0.2 ms per candidate.
    """
    tensors = {tensor.name: tensor for tensor in input_tensors(SCHEMA)}
    rng = np.random.default_rng(seed)
    width = 1 + 2 * tasks
    nodes, sums = [], []
    weights: dict[str, np.ndarray[Any, Any]] = {"bias": rng.normal(size=width).astype(np.float32)}
    for name, tensor in tensors.items():
        weights[f"w_{name}"] = rng.normal(size=(int(tensor.shape[1]), width)).astype(np.float32)
        weights[f"w_{name}"] *= 0.03 if tensor.dtype == "int32" else 0.5
        nodes.append(helper.make_node("Cast", [name], [f"f_{name}"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("MatMul", [f"f_{name}", f"w_{name}"], [f"y_{name}"]))
        sums.append(f"y_{name}")
    # the items' sums come last, so that the broadcast to N happens whatever inputs there are
    total = "bias"
    for index, name in enumerate(sums):
        nodes.append(helper.make_node("Add", [total, name], [f"t{index}"]))
        total = f"t{index}"
    if fault == "nan":
        weights["five"] = np.array([5.0], dtype=np.float32)
        nodes += [
            helper.make_node("Add", ["item_values", "five"], ["shifted"]),
            helper.make_node("Sqrt", ["shifted"], ["root"]),
            helper.make_node("ReduceMean", ["root"], ["mean"], axes=[1], keepdims=1),
            helper.make_node("Sub", ["mean", "mean"], ["nothing"]),
            helper.make_node("Add", [total, "nothing"], ["faulty"]),
        ]
        total = "faulty"
    if fault == "slow":
        weights["size"] = np.array([2, 3000], dtype=np.int64)
        weights["square"] = np.array([3000, 3000], dtype=np.int64)
        weights["back"] = np.array([3000, 1], dtype=np.int64)
        nodes += [helper.make_node("ConstantOfShape", [name], [f"zeros_{name}"]) for name in ("size", "square", "back")]
        nodes += [
            helper.make_node("MatMul", ["item_values", "zeros_size"], ["wide"]),
            helper.make_node("MatMul", ["wide", "zeros_square"], ["wider"]),
            helper.make_node("MatMul", ["wider", "zeros_back"], ["nothing"]),
            helper.make_node("Add", [total, "nothing"], ["late"]),
        ]
        total = "late"
    weights["split"] = np.array([1, tasks, tasks], dtype=np.int64)
    weights["one"] = np.array(1.0, dtype=np.float32)
    weights["alpha"] = np.full(tasks, 0.05, dtype=np.float32)
    weights["axis"] = np.array([1], dtype=np.int64)
    nodes += [
        helper.make_node("Sigmoid", [total], ["s"]),
        helper.make_node("Split", ["s", "split"], ["u", "a", "g"], axis=1),
        helper.make_node("Mul", ["a", "u"], ["p_joint"]),
        helper.make_node("Mul", ["g", "alpha"], ["b"]),
        helper.make_node("Sub", ["one", "u"], ["not_u"]),
        helper.make_node("Mul", ["b", "not_u"], ["rest"]),
        helper.make_node("Add", ["p_joint", "rest"], ["p"]),
        helper.make_node("Squeeze", ["u", "axis"], ["p_up"]),
    ]
    kinds = {"int32": TensorProto.INT32, "float32": TensorProto.FLOAT}

    def infos(declared: Any) -> list[Any]:
        return [helper.make_tensor_value_info(t.name, kinds[t.dtype], list(t.shape)) for t in declared]

    made = helper.make_graph(
        nodes,
        "tiny",
        infos(tensors.values()),
        infos(output_tensors(tasks, has_latent=True)),
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def write_bundle(folder: Path, *, seed: int = 0, fault: str | None = None, golden_error: float = 0) -> Path:
    """Write a bundle whose golden outputs are its own, `golden_error` off."""
    model = graph(len(TASKS), seed, fault)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    inputs: dict[str, Any] = {}
    for tensor in input_tensors(SCHEMA):
        shape = [4 if size == "N" else size for size in tensor.shape]
        codes = rng.integers(0, 5, size=shape).astype(np.int32)
        inputs[tensor.name] = codes if tensor.dtype == "int32" else rng.normal(size=shape).astype(np.float32)
    names = [node.name for node in session.get_outputs()]
    outputs = {n: v + np.float32(golden_error) for n, v in zip(names, session.run(names, inputs), strict=True)}
    with new_folder(folder) as aside:
        (aside / "model.onnx").write_bytes(model.SerializeToString())
        (aside / "features.json").write_text(SCHEMA.model_dump_json())
        (aside / "golden.npz").write_bytes(golden_bytes(Golden(inputs, outputs)))
        manifest = Manifest(
            architecture="dlen-tiny",
            tasks=tuple(
                Task(name=t, kind="negative" if t == "hate" else "positive", base_rate=0.1, alpha=0.05) for t in TASKS
            ),
            inputs=input_tensors(SCHEMA),
            outputs=output_tensors(len(TASKS), has_latent=True),
            opset=17,
            parity=Parity(tolerance=1e-5, max_abs_error=1e-7, rows=4),
            files=dict(list_files(aside)),
            provenance=Provenance(
                data_fingerprint="sha256:0", git_commit="0", created_at="2026-01-01T00:00:00Z", loss="joint", seed=seed
            ),
        )
        write_manifest(aside, manifest.model_dump_json().encode())
    return folder


@dataclass
class Running:
    """A `dlen serve` process."""

    process: subprocess.Popen[str]
    url: str
    metrics_url: str
    log: Path
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=10))

    def rank(self, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(
            f"{self.url}/v1/rank", content=content, headers={"content-type": "application/json", **headers}
        )

    def get(self, path: str) -> httpx.Response:
        return self.client.get(self.url + path)

    def metrics(self) -> str:
        return self.client.get(f"{self.metrics_url}/metrics").text

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of a name that carry the labels."""
        total = 0.0
        for line in self.metrics().splitlines():
            if line.startswith((f"{name}{{", f"{name} ")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rpartition(" ")[2])
        return total

    def lines(self, logger: str | None = None, wanted: int = 0, **found: object) -> list[dict[str, Any]]:
        """The log's lines of a logger that hold these values; waits a while for as many as are wanted."""
        give_up = time.monotonic() + 10
        while True:
            documents = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
            kept = [d for d in documents if logger in (None, d["logger"]) and found.items() <= d.items()]
            if len(kept) >= wanted or time.monotonic() > give_up:
                return kept
            time.sleep(0.02)

    def worker_pids(self) -> list[int]:
        return workers_below(self.process.pid)

    def stop(self, seconds: float = 20) -> int:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


def start(folder: Path, models: Path, fusion: Path, *flags: str, **environment: str) -> Running:
    """Start `dlen serve` on free ports and wait until it is ready."""
    log = folder / f"serve-{time.monotonic_ns()}.log"
    command = [sys.executable, "-m", "cli", "serve", "--models", str(models), "--fusion", str(fusion)]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--port", "0", "--metrics-port", "0", *flags],
            stderr=file,
            stdout=file,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "DLEN_WORKERS": "1", **environment},
        )
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up and process.poll() is None:
        found = re.search(r"serving on (http://[\w.:]+), metrics on (http://[\w.:]+)", log.read_text())
        if found:
            running = Running(process, found[1], found[2], log)
            if _is_ready(running):
                return running
        time.sleep(0.05)
    process.kill()
    process.wait()
    raise AssertionError(f"the service did not start:\n{log.read_text()}")


def _is_ready(running: Running) -> bool:
    try:
        return running.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., Path]:
    return write_bundle


@pytest.fixture(scope="session")
def start_service() -> Callable[..., Running]:
    """Start a service; the caller stops it."""
    return start


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with one good bundle, tiny/1; not to be changed."""
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder / "tiny" / "1")
    return folder


@pytest.fixture(scope="session")
def fusion_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("fusion") / "fusion.yaml"
    file.write_text(FUSION)
    return file


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, models_folder: Path, fusion_file: Path) -> Iterator[Running]:
    """One service for a module's tests, with small limits."""
    folder = tmp_path_factory.mktemp("serve")
    service = start(
        folder, models_folder, fusion_file, DLEN_MAX_CANDIDATES="50", DLEN_MAX_BODY_BYTES="20000",
        DLEN_DRAIN_SECONDS="0.3",
    )  # fmt: skip
    yield service
    service.stop()


@pytest.fixture
def serve(tmp_path: Path, models_folder: Path, fusion_file: Path) -> Iterator[Callable[..., Running]]:
    """Start services that the test's end stops."""
    started: list[Running] = []

    def start_one(*flags: str, models: Path = models_folder, fusion: Path = fusion_file, **env: str) -> Running:
        started.append(start(tmp_path, models, fusion, *flags, **env))
        return started[-1]

    yield start_one
    for service in started:
        service.stop()


@pytest.fixture
def body() -> dict[str, Any]:
    """A good request."""
    return request_body(5)


def request_body(candidates: int) -> dict[str, Any]:
    return {
        "request_id": "r-1",
        "user": {"id": "u1", "features": {"activity": "high", "age": 25}},
        "context": {"hour": 20},
        "candidates": [
            {"id": f"c{i}", "features": {"author": i, "quality": i / 7 - 0.3, "tags": ["a", f"t{i}"]}, "group": f"g{i}"}
            for i in range(candidates)
        ],
    }


@pytest.fixture(scope="session")
def make_body() -> Callable[[int], dict[str, Any]]:
    return request_body
