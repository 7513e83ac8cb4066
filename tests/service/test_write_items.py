"""The compiled writer says exactly what the same candidates say one by one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.wire import loops
from service.wire.answer import _pieces, _template

pytestmark = pytest.mark.usefixtures("json_loops")

f32 = np.float32


def write(ids, scores, columns_NC, tasks, *, latent, order_K=None):
    order_K = np.arange(len(ids)) if order_K is None else order_K
    texts = ",".join(repr(float(scores[at])) for at in order_K).encode()
    pieces = _pieces(_template(tasks, True, latent))
    return loops.json.write_items(list(ids), order_K, texts, np.asarray(columns_NC, f32), pieces)


powers = f32([2.0**-power for power in range(0, 30)])
edges = st.sampled_from([*powers.tolist(), *np.nextafter(powers[:-1], f32(0)).tolist()])
probability = st.one_of(st.floats(0, 1, width=32), edges)
ids_of = st.lists(st.text(max_size=12), min_size=1, max_size=8, unique=True)


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
def test_what_is_written_at_once_is_what_is_said_one_by_one(data, ids, tasks_count, latent):
    tasks = tuple(f"task {at}" for at in range(tasks_count))
    shape = (len(ids), tasks_count * (1 + latent) + latent)
    columns = data.draw(arrays.arrays(f32, shape, elements=probability))
    scores = data.draw(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=len(ids), max_size=len(ids)))
    order_K = np.array(data.draw(st.permutations(range(len(ids)))))
    found = write(ids, scores, columns, tasks, latent=latent, order_K=order_K)
    plain = all(
        min(map(ord, name), default=32) >= 32
        and not any("\ud800" <= c <= "\udfff" for c in name)
        and '"' not in name
        and "\\" not in name
        for name in ids
    )
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
    for exponent in range(-149 + 23, 0):
        low = np.float32(2.0**exponent).view(np.uint32)
        bits = np.concatenate([np.arange(200), rng.integers(0, 2**23, 600), np.arange(2**23 - 200, 2**23)])
        values = (low + bits.astype(np.uint32)).view(f32)
        found = write([str(at) for at in range(1000)], [0] * 1000, values[:, None], ("t",), latent=False)
        assert found is not None
        assert (f32([document["p"]["t"] for document in json.loads(b"[" + found + b"]")]) == values).all()


def test_probabilities_have_9_12_or_16_decimals_or_what_they_need():
    columns = f32([[0.5, 2.0**-14], [2.0**-15, 0.0], [1.0, 1 - 2.0**-24]])
    assert write(["1", "22", "é"], [1.5, 2, 3], columns, ("a", "b"), latent=False) == (
        b'{"id":"1","score":1.5,"p":{"a":0.500000000,"b":0.000061035156}},'
        b'{"id":"22","score":2.0,"p":{"a":0.0000305175781250,"b":0.0}},'
        b'{"id":"\xc3\xa9","score":3.0,"p":{"a":1.0,"b":0.999999940}}'
    )


def test_a_last_value_stands_behind_the_probabilities():
    pieces = (b'{"id":"', b'","score":', b',"p":', b',"why":', b"}")
    last = [b'{"x":1}', b"[]"]
    found = loops.json.write_items(["a", "b"], np.array([1, 0]), b"2,1", f32([[0.5], [0.25]]), pieces, last)
    assert found == b'{"id":"b","score":2,"p":0.250000000,"why":{"x":1}},{"id":"a","score":1,"p":0.500000000,"why":[]}'


def test_only_the_candidates_of_the_order_are_written():
    columns, order_K = f32([[0.5], [0.25], [0.125]]), np.array([2, 0])
    found = json.loads(b"[" + write(["a", "b", "c"], [1, 2, 3], columns, ("t",), latent=False, order_K=order_K) + b"]")
    assert found == [{"id": "c", "score": 3, "p": {"t": 0.125}}, {"id": "a", "score": 1, "p": {"t": 0.5}}]
    assert write([], [], np.empty((0, 1)), ("t",), latent=False) == b""


@pytest.mark.parametrize("name", ['"', "\\", "\n", "\0", "\ud800"])
def test_ids_that_need_escapes_are_left_to_others(name):
    assert write([name, "2"], [1, 2], f32([[0.5], [0.5]]), ("a",), latent=False) is None


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"order_K": np.array([0, 2])}, "order: found 2, expected below 2"),
        ({"order_K": np.array([0, -1])}, "order: found -1, expected below 2"),
        ({"scores": b"1"}, "scores: found 1 texts, expected 2"),
        ({"template": (b"", b"", b"")}, "template: found 3 texts, expected 4"),
        ({"columns_NC": f32([[0.5]])}, "order: found 1, expected below 1"),
        ({"last": [b"1", b"2"]}, "template: found 4 texts, expected 5"),
        ({"last": [b"1"], "template": 5 * (b"",)}, "last: found 1 texts, expected 2"),
    ],
)
def test_what_does_not_belong_together_is_refused(change, refused):
    fitting = {"ids": ["a", "b"], "order_K": np.arange(2), "scores": b"1,2", "columns_NC": f32([[0.5], [0.5]])}
    fitting["template"] = (b"", b"", b"", b"")
    with pytest.raises((ValueError, IndexError), match=refused):
        loops.json.write_items(**fitting | change)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=5), max_size=6), st.data())
def test_texts_are_joined_in_an_order(texts, data):
    order = data.draw(st.lists(st.sampled_from(range(len(texts))), max_size=8)) if texts else []
    found = loops.arrow.join_texts(texts, np.array(order, dtype=np.int64))
    wanted = [texts[at] for at in order]
    if any("\ud800" <= c <= "\udfff" for text in wanted for c in text):
        assert found is None
    else:
        joined, offsets = found
        assert offsets.dtype == np.int32 and offsets[0] == 0 and len(joined) == offsets[-1]
        assert [joined[a:b].decode() for a, b in zip(offsets, offsets[1:], strict=False)] == wanted


@pytest.mark.parametrize("at", [-1, 2])
def test_an_order_beyond_the_texts_is_refused(at):
    with pytest.raises(IndexError, match=f"order: found {at}, expected below 2"):
        loops.arrow.join_texts(["a", "b"], np.array([0, at]))
