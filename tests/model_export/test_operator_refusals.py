"""What operators of ours refuse: sizes that do not fit, codes without rows, instructions that do not exist."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from tests.model_export.operator_nodes import OneNode, byte_networks, order_of


@pytest.fixture(scope="module")
def native(operators_library) -> ModuleType:
    return operators_library


@pytest.mark.parametrize(
    ("what", "change", "complaint"),
    [
        ("layout", lambda a: a[:3], "layout: found"),
        ("layout", lambda a: -a, "out of bounds"),
        ("layout", lambda a: a * 0, "out of bounds"),
        ("layout", lambda a: a + (1 << 40), "out of bounds"),
        ("layout", lambda a: np.r_[a, np.ones(20, dtype=np.int64)], "layout: found"),
        ("layout", lambda a: np.r_[a[:4], 1 << 20, a[5:]], "beyond a row"),
        ("layout", lambda a: np.r_[a[:5], 1 << 20, a[6:]], "share: found"),
        ("layout", lambda a: np.r_[a[:3], 3, a[4:]], "beyond a row"),
        ("weights", lambda a: a[:-1], "weights: found"),
        ("scales", lambda a: a[:-1], "scales: found"),
        ("scales", lambda a: -a, "from 0 on"),
        ("scales", lambda a: a * np.nan, "from 0 on"),
        ("biases", lambda a: a[:-1], "biases: found"),
        ("at_least", lambda a: a[:-1], "at_least: found"),
        ("x", lambda a: a[:, :-1], "x: found"),
        ("share", lambda a: a[:, :-2], "share: found"),
    ],
)
def test_what_does_not_fit_is_an_error_of_the_run(native, tmp_path, what, change, complaint):
    given_, constants, _ = byte_networks(
        np.random.default_rng(0), 2, [5, 7, 3], 3, own=True, zero_point=0, at_least=True, extra=1, shared=True
    )
    for arrays in (given_, constants):
        if what in arrays:
            arrays[what] = change(arrays[what]).astype(arrays[what].dtype)
    order = order_of(shared=True, at_least=True)
    node = OneNode(tmp_path, "ByteNetworks", given_, constants, order, {"y": "uint8"})
    with pytest.raises(Exception, match=complaint):
        node.run()


@pytest.mark.parametrize("code", [-1, 7, 2**31 - 1, -(2**31)])
def test_a_code_without_a_row_is_an_error(native, tmp_path, code):
    codes = np.array([[0, 1], [2, code]], dtype=np.int32)
    table = np.zeros((7, 4), dtype=np.uint8)
    constants = {"layout": np.array([2, 4]), "offsets": np.zeros(2, dtype=np.int32), "table": table}
    node = OneNode(tmp_path, "GatherBytes", {"codes": codes}, constants, "codes layout offsets table", {"y": "uint8"})
    with pytest.raises(Exception, match="a code's row"):
        node.run()


@pytest.mark.parametrize(
    ("operator", "given_", "constants", "order", "outputs"),
    [
        (
            "Mixtures", {"shares": np.zeros((4, 3), np.float32), "x": np.zeros((5, 3, 2), np.uint8)},
            {"layout": np.array([1, 3, 0, 0, 2])}, "shares x layout", {"y": "float32"},
        ),
        (
            "Mixtures", {"shares": np.zeros((5, 3), np.float32), "x": np.zeros((5, 3, 2), np.uint8)},
            {"layout": np.array([1, 3, 0, 2, 2])}, "shares x layout", {"y": "float32"},
        ),
        (
            "RequestShare", {"x": np.zeros((1, 4), np.float32)},
            {
                "layout": np.array([3, 2]), "weights": np.zeros(6, np.int8), "worth": np.zeros(2, np.float32),
                "bias": np.zeros(2, np.float32), "step": np.ones(1, np.float32),
            }, "x layout weights worth bias step", {"y": "float32"},
        ),
        (
            "RequestShare", {"x": np.zeros((1, 3), np.float32)},
            {
                "layout": np.array([3, 2]), "weights": np.zeros(6, np.int8), "worth": np.zeros(2, np.float32),
                "bias": np.zeros(2, np.float32), "step": np.zeros(1, np.float32),
            }, "x layout weights worth bias step", {"y": "float32"},
        ),
        (
            "ByteLinear", {"x": np.zeros((2, 3), np.uint8), "share": np.zeros((1, 3), np.float32)},
            {"layout": np.array([128, 2, 3, 2]), "weights": np.zeros(6, np.int8), "worth": np.zeros(2, np.float32)},
            "x layout weights worth share", {"y": "float32"},
        ),
        (
            "LatentHead", {"logits": np.zeros((4, 4), np.float32), "h": np.zeros((5, 1), np.float32)},
            {"layout": np.array([2, 0, 1, 0, 0]), "bounds": np.ones(4, np.float32)}, "logits h layout bounds",
            {"p": "float32", "p_joint": "float32", "p_up": "float32"},
        ),
        (
            "LatentHead", {"logits": np.zeros((5, 4), np.float32), "h": np.zeros((5, 1), np.float32)},
            {"layout": np.array([2, 0, 2, 0, 0]), "bounds": np.ones(4, np.float32)}, "logits h layout bounds",
            {"p": "float32", "p_joint": "float32", "p_up": "float32"},
        ),
    ],
)  # fmt: skip
def test_other_operators_refuse_what_does_not_fit(native, tmp_path, operator, given_, constants, order, outputs):
    node = OneNode(tmp_path, operator, given_, constants, order, outputs)
    with pytest.raises(Exception, match="found|layout"):
        node.run()


def test_an_unknown_instruction_set_is_refused(native):
    with pytest.raises(ValueError, match="found 'sse9'"):
        native.use("sse9")
