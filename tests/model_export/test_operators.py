"""Each operator of ours as a graph of one node, against numpy, in every instruction set that the processor has."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model_export.operator_nodes import ORDER, SETS, OneNode, byte_networks, order_of, using


@pytest.fixture(scope="module")
def native(operators_library) -> ModuleType:
    return operators_library


@pytest.mark.parametrize("instructions", SETS)
@given(
    seed=st.integers(0, 9999),
    networks=st.integers(1, 3),
    widths=st.lists(st.integers(1, 150), min_size=2, max_size=4),
    rows=st.sampled_from([0, 1, 2, 15, 16, 17, 31, 33, 48, 63, 64, 65, 130]),
    own=st.booleans(),
    zero_point=st.sampled_from([0, 128]),
    at_least=st.booleans(),
    shared=st.booleans(),
    extra=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_networks_of_bytes_are_exact(
    native, tmp_path_factory, instructions, seed, networks, widths, rows, own, zero_point, at_least, shared, extra
):
    random = np.random.default_rng(seed)
    given_, constants, wanted = byte_networks(
        random, networks, widths, rows, own=own, zero_point=zero_point, at_least=at_least, shared=shared, extra=extra
    )
    order = order_of(shared=shared, at_least=at_least)
    node = OneNode(tmp_path_factory.mktemp("one"), "ByteNetworks", given_, constants, order, {"y": "uint8"})
    with using(native, instructions):
        np.testing.assert_array_equal(node.run(), wanted)


@pytest.mark.parametrize("instructions", SETS)
@given(
    seed=st.integers(0, 9999),
    mixtures=st.integers(1, 10),
    experts=st.integers(1, 6),
    widths=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    outputs=st.sampled_from([0, 1, 2, 10, 17, 40]),
    rows=st.sampled_from([0, 1, 2, 15, 16, 17, 50]),
    one_share=st.booleans(),
    softmax=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_mixtures_and_their_towers(
    native, tmp_path_factory, instructions, seed, mixtures, experts, widths, outputs, rows, one_share, softmax
):
    random = np.random.default_rng(seed)
    widths = widths if outputs else widths[:1]
    shares = random.normal(size=(1 if one_share else rows, mixtures * experts)).astype(np.float32)
    shares = shares * 30 if softmax else shares
    x = random.integers(0, 256, size=(rows, experts, widths[0]), dtype=np.uint8)
    weights = [random.normal(size=(mixtures, k, h)).astype(np.float32) for k, h in pairwise(widths)]
    biases = [random.normal(size=(mixtures, h)).astype(np.float32) for h in widths[1:]]
    last = random.normal(size=(mixtures * widths[-1], outputs)).astype(np.float32)
    bias = random.normal(size=outputs).astype(np.float32)

    g = shares.astype(np.float64).reshape(len(shares), mixtures, experts)
    if softmax:
        g = np.exp(g - g.max(axis=2, keepdims=True))
        g /= g.sum(axis=2, keepdims=True)
    hidden = np.einsum("nme,neh->mnh", np.broadcast_to(g, (rows, mixtures, experts)), x.astype(np.float64))
    size = np.einsum("nme,neh->mnh", np.broadcast_to(np.abs(g), (rows, mixtures, experts)), x.astype(np.float64))
    for w, b in zip(weights, biases, strict=True):
        hidden, size = np.maximum(hidden @ w + b[:, None], 0), size @ np.abs(w) + np.abs(b)[:, None]
    side_by_side = (a.transpose(1, 0, 2).reshape(rows, mixtures * widths[-1]) for a in (hidden, size))
    wanted, size = side_by_side
    if outputs:
        wanted, size = wanted @ last + bias, size @ np.abs(last) + np.abs(bias)

    layout = np.array([mixtures, experts, softmax, outputs, *widths], dtype=np.int64)
    constants = {"layout": layout}
    order = "shares x layout"
    if outputs:
        constants["weights"] = np.concatenate([*(w.reshape(-1) for w in weights), last.reshape(-1)])
        constants["biases"] = np.concatenate([*(b.reshape(-1) for b in biases), bias])
        order += " weights biases"
    given_ = {"shares": shares, "x": x}
    node = OneNode(tmp_path_factory.mktemp("one"), "Mixtures", given_, constants, order, {"y": "float32"})
    with using(native, instructions):
        found = node.run()
    assert found.shape == wanted.shape
    assert (np.abs(found - wanted) <= 2e-6 * size + 1e-6).all()


@pytest.mark.parametrize("instructions", SETS)
@given(seed=st.integers(0, 9999), inputs=st.integers(1, 130), outputs=st.integers(1, 70), far=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_share_of_a_request(native, tmp_path_factory, instructions, seed, inputs, outputs, far):
    random = np.random.default_rng(seed)
    step = np.float32(0.003)
    x = random.uniform(-127 * 256, 127 * 256, size=(1, inputs)).astype(np.float32) * step * (9 if far else 1)
    weights = random.integers(-127, 128, size=(inputs, outputs)).astype(np.int8)
    worth, bias = (random.normal(size=outputs).astype(np.float32) for _ in range(2))
    high = np.rint(x / (256 * step)).clip(-128, 127)
    low = np.rint((x - high * 256 * step) / step).clip(-128, 127)
    wanted = (256 * step * high + step * low).astype(np.float64) @ weights.astype(np.float64) * worth + bias
    constants = {
        "layout": np.array([inputs, outputs]), "weights": weights, "worth": worth, "bias": bias,
        "step": np.array([step]),
    }  # fmt: skip
    order = "x layout weights worth bias step"
    node = OneNode(tmp_path_factory.mktemp("one"), "RequestShare", {"x": x}, constants, order, {"y": "float32"})
    with using(native, instructions):
        # a value on the edge between two steps may go to either
        slack = 2 * step * 127 * np.abs(worth) + 1e-5 * np.abs(wanted).max()
        assert (np.abs(node.run() - wanted) <= slack).all()


@pytest.mark.parametrize("instructions", SETS)
@given(seed=st.integers(0, 9999), rows=st.integers(0, 20), inputs=st.integers(1, 70), outputs=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_layers_of_bytes_without_relu(native, tmp_path_factory, instructions, seed, rows, inputs, outputs):
    random = np.random.default_rng(seed)
    zero_point, offset = int(random.integers(256)), int(random.integers(4))
    x = random.integers(0, 256, size=(rows, inputs), dtype=np.uint8)
    weights = random.integers(-127, 128, size=(inputs, outputs)).astype(np.int8)
    worth = random.normal(size=outputs).astype(np.float32)
    share = random.normal(size=(1, offset + outputs + offset)).astype(np.float32)
    sums = (x.astype(np.int64) - zero_point) @ weights.astype(np.int64)
    wanted = sums * worth.astype(np.float64) + share[0, offset : offset + outputs]
    constants = {"layout": np.array([zero_point, offset, inputs, outputs]), "weights": weights, "worth": worth}
    given_, order = {"x": x, "share": share}, "x layout weights worth share"
    node = OneNode(tmp_path_factory.mktemp("one"), "ByteLinear", given_, constants, order, {"y": "float32"})
    with using(native, instructions):
        np.testing.assert_allclose(node.run(), wanted, rtol=1e-6, atol=1e-6 * np.abs(wanted).max(initial=1))


@pytest.mark.parametrize(("operator", "dtype"), [("GatherBytes", "uint8"), ("GatherFloats", "float32")])
@given(seed=st.integers(0, 9999), rows=st.integers(0, 30), columns=st.integers(1, 5), width=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_rows_of_a_table(native, tmp_path_factory, operator, dtype, seed, rows, columns, width):
    random = np.random.default_rng(seed)
    each = 7
    table = random.integers(0, 256, size=(columns * each, width)).astype(dtype)
    codes = random.integers(0, each, size=(rows, columns)).astype(np.int32)
    offsets = (each * np.arange(columns)).astype(np.int32)
    constants = {"layout": np.array([columns, width]), "offsets": offsets, "table": table}
    order, folder = "codes layout offsets table", tmp_path_factory.mktemp("one")
    node = OneNode(folder, operator, {"codes": codes}, constants, order, {"y": dtype})
    np.testing.assert_array_equal(node.run(), table[codes + offsets].reshape(rows, columns * width))


@pytest.mark.parametrize("instructions", SETS)
@given(
    seed=st.integers(0, 9999),
    rows=st.integers(0, 40),
    one=st.booleans(),
    parents=st.lists(st.integers(-1, 5), min_size=1, max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_the_head(native, tmp_path_factory, instructions, seed, rows, one, parents):
    random = np.random.default_rng(seed)
    parents = [parent if parent < task else -1 for task, parent in enumerate(parents)]
    tasks = len(parents)
    logits = (5 * random.normal(size=(1 if one else rows, 2 * tasks))).astype(np.float32)
    h = (20 * random.normal(size=(rows, 1))).astype(np.float32)
    bounds = random.uniform(0.1, 1, size=2 * tasks).astype(np.float32)
    given_parents = bounds / (1 + np.exp(-logits.astype(np.float64)))
    both = np.array(np.broadcast_to(given_parents.reshape(-1, 2, tasks), (rows, 2, tasks)))
    for task, parent in enumerate(parents):
        if parent >= 0:
            both[:, :, task] *= both[:, :, parent]
    up = 1 / (1 + np.exp(-h.astype(np.float64)))
    down = 1 / (1 + np.exp(h.astype(np.float64)))
    joint = both[:, 0] * up
    layout = np.array([tasks, *range(tasks), *(parent + 1 for parent in parents)])
    node = OneNode(
        tmp_path_factory.mktemp("one"), "LatentHead", {"logits": logits, "h": h}, {"layout": layout, "bounds": bounds},
        "logits h layout bounds", {"p": "float32", "p_joint": "float32", "p_up": "float32"},
    )  # fmt: skip
    with using(native, instructions):
        p, p_joint, p_up = node.run()
    assert (p.shape, p_joint.shape, p_up.shape) == ((rows, tasks), (rows, tasks), (rows,))
    np.testing.assert_allclose(p, joint + both[:, 1] * down, rtol=3e-6, atol=0)
    np.testing.assert_allclose(p_joint, joint, rtol=3e-6, atol=0)
    np.testing.assert_allclose(p_up, up[:, 0], rtol=3e-6, atol=0)


def test_extreme_logits_stay_finite(native, tmp_path):
    h = np.array([[-1e30], [-100], [-0.0], [0], [100], [1e30]], dtype=np.float32)
    logits = np.array([[1e30, -1e30]] * 6, dtype=np.float32)
    constants = {"layout": np.array([1, 0, 0]), "bounds": np.ones(2, dtype=np.float32)}
    order, outputs = "logits h layout bounds", {"p": "float32", "p_joint": "float32", "p_up": "float32"}
    for instructions in SETS:
        if SETS.index(instructions) > SETS.index(native.instructions()):
            break
        with using(native, instructions):
            given_ = {"logits": logits, "h": h}
            p, p_joint, p_up = OneNode(tmp_path, "LatentHead", given_, constants, order, outputs).run()
        np.testing.assert_allclose(p_up, [0, 0, 0.5, 0.5, 1, 1], atol=1e-37)
        np.testing.assert_allclose(p[:, 0], p_up, atol=1e-37)
        np.testing.assert_allclose(p, p_joint, atol=1e-37)


def test_threads_that_run_a_new_session_at_once_agree(native, tmp_path):
    given_, constants, wanted = byte_networks(
        np.random.default_rng(1), 3, [90, 130, 64], 200, own=False, zero_point=128, at_least=False, extra=0
    )
    for round_ in range(5):
        folder = tmp_path / str(round_)
        folder.mkdir()
        node = OneNode(folder, "ByteNetworks", given_, constants, ORDER, {"y": "uint8"})
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _, run=node.run: run(), range(12)):
                np.testing.assert_array_equal(found, wanted)
