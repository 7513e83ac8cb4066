"""An operator of ours as a graph of one node, and what one of them must give, by numpy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bundle.manifest import Tensor
from model_export.onnx_writer import GraphWriter
from model_export.parity import open_session

SETS = ("portable", "avx512_vnni", "amx_int8")
Inputs = dict[str, np.ndarray[Any, Any]]


@contextmanager
def using(native: ModuleType, instructions: str) -> Iterator[None]:
    """Let operators use an instruction set for a while."""
    best = native.instructions()
    try:
        native.use(instructions)
    except ValueError:
        pytest.skip(f"this processor has no {instructions}")
    try:
        yield
    finally:
        native.use(best)


class OneNode:
    """A session of one node, whose inputs are given or constants."""

    def __init__(self, folder, operator: str, given: Inputs, constants: Inputs, order: str, outputs: dict[str, str]):
        w = GraphWriter()
        edges = {name: w.constant(array) for name, array in constants.items()}
        inputs = [Tensor(name=n, dtype=str(a.dtype), shape=("N", *a.shape[1:])) for n, a in given.items()]
        named = (edges.get(name, name) for name in order.split())
        made = w.ours_of(operator, len(outputs), *("" if name == "-" else name for name in named))
        ranks = {"ByteNetworks": 3, "LatentHead": 2}
        tensors = [
            Tensor(name=n, dtype=dtype, shape=("N",) * (1 if n == "p_up" else ranks.get(operator, 2)))
            for n, dtype in outputs.items()
        ]
        w.write(folder, "one.onnx", inputs, list(zip(tensors, made, strict=True)))
        self.session = open_session(folder / "one.onnx")
        self.given = given

    def run(self) -> Any:
        outputs = self.session.run(None, self.given)
        return outputs[0] if len(outputs) == 1 else outputs


def byte_networks(random, networks, widths, rows, *, own, zero_point, at_least, extra, shared=False):
    """Return inputs of ByteNetworks, and what it gives, by numpy in whole numbers."""
    offset, stride = extra, 2 * extra + widths[0] * (networks if own else 1)
    x = random.integers(0, 256, size=(rows, stride), dtype=np.uint8)
    weights = [random.integers(-127, 128, size=(networks, k, h)).astype(np.int8) for k, h in pairwise(widths)]
    biases = [random.integers(-40_000, 40_000, size=(networks, h)).astype(np.int32) for h in widths[1:]]
    scales = [random.uniform(1e-4, 8e-3, size=(networks, h)).astype(np.float32) for h in widths[1:]]
    if random.random() < 0.2:  # what is scaled may leave 32 bits
        scales[0] *= np.float32(10.0) ** random.integers(0, 12, size=scales[0].shape)
    least = random.integers(0, 256, size=(networks, widths[0]), dtype=np.uint8)
    outputs = []
    for e in range(networks):
        first = offset + (e * widths[0] if own else 0)
        hidden = x[:, first : first + widths[0]]
        hidden = np.maximum(hidden, least[e]) if at_least else hidden
        for layer, (weight, bias, scale) in enumerate(zip(weights, biases, scales, strict=True)):
            sums = (hidden.astype(np.int64) - (zero_point if layer == 0 else 0)) @ weight[e].astype(np.int64) + bias[e]
            hidden = np.rint(sums.astype(np.float32) * scale[e]).clip(0, 255).astype(np.uint8)
        outputs.append(hidden)
    layout = np.array([networks, zero_point, own, stride, offset, extra, *widths], dtype=np.int64)
    given = {"x": x}
    if shared:  # as it comes of the request: floats among others, to be rounded
        share = np.concatenate([np.full(extra, np.nan), biases[0].reshape(-1), np.full(extra, np.nan)])
        given["share"] = (share + random.uniform(-0.4, 0.4, size=share.shape))[None].astype(np.float32)
        biases[0] = biases[0][:0]
    flat = [np.concatenate([a.reshape(-1) for a in arrays]) for arrays in (weights, scales, biases)]
    constants = dict(zip(("layout", "weights", "scales", "biases"), (layout, *flat), strict=True))
    constants |= {"at_least": least.reshape(-1)} if at_least else {}
    return given, constants, np.stack(outputs, axis=1)


def order_of(*, shared: bool, at_least: bool) -> str:
    return (
        "x layout weights scales biases" + (" share" if shared else " -" if at_least else "") + at_least * " at_least"
    )


ORDER = order_of(shared=False, at_least=False)
