"""The expression language: what Python would compute, and nothing that Python could do."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.expression import ExpressionInvalid, parse

NAMES = ("click", "like", "p_up")
leaves = st.one_of(st.sampled_from(NAMES), st.sampled_from(["0", "1", "2", "0.5", "1e-3", "100"]))
texts = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "**"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda text: f"(-{text})"),
        inner.map(lambda text: f"log({text})"),
        inner.map(lambda text: f"exp({text})"),
        st.tuples(inner, inner).map(lambda t: f"min({t[0]}, {t[1]})"),
        st.tuples(inner, inner).map(lambda t: f"max({t[0]}, {t[1]})"),
        inner.map(lambda text: f"clip({text}, 0.1, 0.9)"),
    ),
    max_leaves=8,
)


def evaluate(text, arrays):
    total = np.zeros(len(next(iter(arrays.values()))))
    for _, function in parse(text).terms:
        total = total + function(arrays)
    return total


@settings(max_examples=200, deadline=None)
@given(texts, st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, 0.25, 1e-9])] * 3), min_size=1, max_size=4))
def test_scores_are_finite_whatever_the_expression(text, rows):
    arrays = dict(zip(NAMES, np.array(rows).T, strict=True))
    text = f"{text} + click"
    assert np.isfinite(evaluate(text, arrays)).all()


class Protected:
    """One number with the operations that the module's docstring promises."""

    def __init__(self, value):
        self.value = min(max(value, -1e30), 1e30)

    def __add__(self, other):
        return Protected(self.value + other.value)

    def __sub__(self, other):
        return Protected(self.value - other.value)

    def __neg__(self):
        return Protected(-self.value)

    def __mul__(self, other):
        return Protected(self.value * other.value)

    def __truediv__(self, other):
        sign = -1 if other.value < 0 else 1
        return Protected(self.value / (sign * max(abs(other.value), 1e-12)))

    def __pow__(self, other):
        base = max(self.value, 1e-12 if other.value < 0 else 0.0)
        try:
            return Protected(base**other.value)
        except OverflowError:
            return Protected(1e30)


ORACLE = {
    "log": lambda x: Protected(math.log(max(x.value, 1e-12))),
    "exp": lambda x: Protected(math.exp(min(x.value, 69.0))),
    "min": lambda x, y: Protected(min(x.value, y.value)),
    "max": lambda x, y: Protected(max(x.value, y.value)),
    "clip": lambda x, low, high: Protected(min(max(x.value, low.value), high.value)),
    "Protected": Protected,
}


@settings(max_examples=200, deadline=None)
@given(texts, st.tuples(*[st.sampled_from([0.0, 1.0, 0.25, 0.7])] * 3))
def test_the_value_is_that_of_protected_arithmetic_one_number_at_a_time(text, row):
    text = f"({text}) * click"
    scope = {**ORACLE, **{name: Protected(value) for name, value in zip(NAMES, row, strict=True)}}
    wrapped = re.sub(r"(?<![\w.])\d[\d.]*(?:e-\d)?", lambda match: f"Protected({match[0]})", text)
    expected = eval(wrapped, {"__builtins__": {}}, scope).value
    got = evaluate(text, {name: np.array([value]) for name, value in zip(NAMES, row, strict=True)})[0]
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_outermost_sum_is_split_into_terms():
    parsed = parse("click + 2*like - log(p_up) ")
    assert [text for text, _ in parsed.terms] == ["click", "2*like", "-log(p_up)"]
    assert parsed.names == {"click", "like", "p_up"}


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("click + __import__('os')", 20),
        ("click.__class__", 6),
        ("[click]", 1),
        ("click if like else 0", 1),
        ("click < like", 7),
        ("lambda: click", 7),
        ("click := 3", 7),
        ("click // 2", 7),
        ("click % 2", 7),
        ("max(*click)", 1),
        ("log(click, base=2)", 16),
        ("click(1)", 1),
        ("log", 1),
        ("1e999 * click", 1),
        ("1click", 1),
        ("click and like", 1),
        ("not click", 1),
        ("True + click", 1),
        ("click, like", 1),
        ("", 1),
    ],
)
def test_everything_else_is_refused_with_its_position(text, position):
    with pytest.raises(ExpressionInvalid) as caught:
        parse(text)
    assert caught.value.position == position


def test_very_deep_brackets_are_refused_not_followed():
    with pytest.raises(ExpressionInvalid):
        parse("(" * 900 + "click" + ")" * 900)
