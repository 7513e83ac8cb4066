"""Rows of one width say exactly what the same candidates say one by one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.wire import wide_rows as module
from service.wire.answer import _template

f32 = np.float32


def wide_rows(ids, scores, columns_NC, tasks, *, latent, order_K=None):
    order_K = np.arange(len(ids)) if order_K is None else order_K
    columns_CN = np.ascontiguousarray(columns_NC.T, dtype=np.float64)
    return module.wide_rows(ids, np.array(scores, float), columns_CN, _template(tasks, True, latent), order_K)


powers = f32([2.0**-power for power in range(1, 28)])
edges = st.sampled_from([*powers.tolist(), *np.nextafter(powers[:-1], f32(0)).tolist()])
probability = st.one_of(st.floats(2.0**-26, 1 - 2.0**-24, width=32), edges)
ids_of = st.lists(st.text(st.characters(codec="ascii"), max_size=12), min_size=1, max_size=8, unique=True)


def reference(
    ids: list[str], scores: list[float], columns: np.ndarray, tasks: tuple[str, ...], *, latent: bool
) -> list[dict[str, object]]:
    """The documents, made one by one."""
    documents: list[dict[str, object]] = []
    for name, score, row in zip(ids, scores, columns, strict=True):
        values = iter(row.tolist())
        document: dict[str, object] = {"id": name, "score": score}
        if latent:
            document |= {"p_up": next(values), "p_joint": {task: next(values) for task in tasks}}
        documents.append(document | {"p": {task: next(values) for task in tasks}})
    return documents


def in_float32(value: object) -> object:
    """Every number but the score as the float32 that its text gives."""
    if isinstance(value, dict):
        return {key: inner if key == "score" else in_float32(inner) for key, inner in value.items()}
    return float(f32(value)) if isinstance(value, float) else value


@settings(max_examples=300, deadline=None)
@given(st.data(), ids_of, st.integers(1, 3), st.booleans())
def test_rows_of_one_width_say_what_is_said_one_by_one(data, ids, tasks_count, latent):
    tasks = tuple(f"task {at}" for at in range(tasks_count))
    shape = (len(ids), tasks_count * (1 + latent) + latent)
    columns = data.draw(arrays.arrays(f32, shape, elements=probability))
    scores = data.draw(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=len(ids), max_size=len(ids)))
    order_K = np.array(data.draw(st.permutations(range(len(ids)))))
    found = wide_rows(ids, scores, columns, tasks, latent=latent, order_K=order_K)
    plain = all(min(name.encode(), default=32) >= 32 and '"' not in name and "\\" not in name for name in ids)
    assert (found is None) == (not plain)
    if found is not None:
        documents = json.loads(b"[" + found + b"]")
        ids, scores, columns = [ids[at] for at in order_K], [scores[at] for at in order_K], columns[order_K]
        assert [list(document) for document in documents] == [
            list(reference(ids, scores, columns, tasks, latent=latent)[0])
        ] * len(ids)
        assert [in_float32(document) for document in documents] == reference(ids, scores, columns, tasks, latent=latent)


def test_each_float32_of_the_range_comes_back():
    """All exponents, all over the mantissa, with the neighbours of the powers of two."""
    rng = np.random.default_rng(1)
    for exponent in range(-27, 0):
        low = np.float32(2.0**exponent).view(np.uint32)
        bits = np.concatenate([np.arange(200), rng.integers(0, 2**23, 600), np.arange(2**23 - 200, 2**23)])
        values = (low + bits.astype(np.uint32)).view(f32)
        found = wide_rows([str(at) for at in range(1000)], [0] * 1000, values[:, None], ("t",), latent=False)
        assert found is not None
        assert (f32([document["p"]["t"] for document in json.loads(b"[" + found + b"]")]) == values).all()


def test_common_probabilities_have_twelve_decimals_and_small_ones_sixteen():
    columns = f32([[0.5, 2.0**-15], [0.25, 0.5]])
    assert wide_rows(["1", "22"], [1.5, 2], columns, ("a", "b"), latent=False) == (
        b'{"id":"1" ,"score":1.5,"p":{"a":0.500000000000,"b":0.0000305175781250}},'
        b'{"id":"22","score":2.0,"p":{"a":0.250000000000,"b":0.5000000000000000}}'
    )


@pytest.mark.parametrize("p", [0.0, 1.0, 2.0**-28, 1e-12])
def test_what_twelve_or_sixteen_decimals_cannot_hold_is_left_alone(p):
    columns = f32([[0.5], [p]])
    assert wide_rows(["1", "2"], [1, 2], columns, ("a",), latent=False) is None


@pytest.mark.parametrize("name", ['"', "\\", "\n", "\0", "é", "\ud800", "x" * 63])
def test_ids_that_would_need_escapes_or_much_room_are_left_alone(name):
    assert wide_rows([name, "2"], [1, 2], f32([[0.5], [0.5]]), ("a",), latent=False) is None
