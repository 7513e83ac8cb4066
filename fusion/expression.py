"""A small safe language for scores: names, numbers, + − * / **, and log, exp, min, max, clip.

Text is parsed once to a tree of numpy calls; nothing is ever evaluated as Python. Every operation is protected,
so that a score is always a finite number: log(x) is log(max(x, 1e-12)); x / y keeps |y| ≥ 1e-12; the base of **
is at least 0 (1e-12 under a negative exponent); results of * / ** and exp stay within ±1e30.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion.formulas import Floats

Value = Any  # float64 [N] or a float: numpy's ufuncs take both
Node = Callable[[Mapping[str, Floats]], Value]

TINY = 1e-12
HUGE = 1e30
MAX_DEPTH = 40
_TOKEN = re.compile(
    r"\s+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![A-Za-z_0-9.])"  # blanks, numbers
    r"|[A-Za-z_][A-Za-z_0-9]*|\*\*|/(?!/)|[-+*(),]"  # names, operators
)


class ExpressionInvalid(ValueError):
    """Text that is no expression; `position` counts characters from 1."""

    def __init__(self, position: int, *, found: str, expected: str) -> None:
        """Keep the parts of the message."""
        super().__init__(f"position {position}: got {found}, want {expected}")
        self.position = position
        self.found = found
        self.expected = expected


@dataclass(frozen=True)
class Parsed:
    """An expression as terms whose sum it is.

    Attributes:
        terms: (text, function of the named arrays) per summand of the outermost sum, in order.
        names: every name that the expression reads.
    """

    terms: tuple[tuple[str, Node], ...]
    names: frozenset[str]


def parse(text: str) -> Parsed:
    """Return the expression's terms and names.

    Raises:
        ExpressionInvalid: anything but the small language, with the position.
    """
    _check_tokens(text)
    flat = re.sub(r"\s", " ", text)
    start = len(flat) - len(flat.lstrip())
    try:
        tree = ast.parse(flat.strip(), mode="eval").body
    except SyntaxError as exc:
        found = f"{exc.msg} at {flat[start + (exc.offset or 1) - 1 :][:20]!r}"
        raise ExpressionInvalid(start + (exc.offset or 1), found=found, expected="an expression") from None
    except (RecursionError, MemoryError):
        raise ExpressionInvalid(1, found="deeper nesting", expected=f"at most {MAX_DEPTH} levels") from None
    reader = _Reader(flat.strip(), start)
    terms = tuple(reader.summands(tree))
    if not reader.names:
        raise ExpressionInvalid(1, found="only numbers", expected="at least one task, p_up or attribute")
    return Parsed(terms, frozenset(reader.names))


def names_by_term(text: str) -> list[set[str]]:
    """Return the names that each summand of the outermost sum reads, in order.

    Raises:
        ExpressionInvalid: as of `parse`.
    """
    return [set(re.findall(r"(?<![\w.])[A-Za-z_]\w*", term)) - set(_FUNCTIONS) for term, _ in parse(text).terms]


def _check_tokens(text: str) -> None:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            expected = "names, numbers, + - * / **, brackets, commas"
            raise ExpressionInvalid(position + 1, found=repr(text[position : position + 10]), expected=expected)
        position = match.end()


def _limit(value: Value) -> Value:
    return np.minimum(np.maximum(value, -HUGE), HUGE)


def _times(a: Value, b: Value) -> Value:
    return _limit(np.multiply(a, b))


def _divide(a: Value, b: Value) -> Value:
    return _limit(np.divide(a, np.where(np.less(b, 0), np.minimum(b, -TINY), np.maximum(b, TINY))))


def _power(a: Value, b: Value) -> Value:
    base = np.maximum(a, np.where(np.less(b, 0), TINY, 0.0))
    with np.errstate(over="ignore", under="ignore"):
        return _limit(np.power(base, b))


def _log(a: Value) -> Value:
    return np.log(np.maximum(a, TINY))


def _exp(a: Value) -> Value:
    return np.exp(np.minimum(a, 69.0))  # e^69 ≈ 9e29


def _smallest(*values: Value) -> Value:
    result = values[0]
    for value in values[1:]:
        result = np.minimum(result, value)
    return result


def _largest(*values: Value) -> Value:
    result = values[0]
    for value in values[1:]:
        result = np.maximum(result, value)
    return result


def _clip(value: Value, low: Value, high: Value) -> Value:
    return np.minimum(np.maximum(value, low), high)


_BINARY: dict[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: _times,
    ast.Div: _divide,
    ast.Pow: _power,
}
_FUNCTIONS: dict[str, tuple[Callable[..., Value], int, int]] = {
    "log": (_log, 1, 1),
    "exp": (_exp, 1, 1),
    "min": (_smallest, 2, 20),
    "max": (_largest, 2, 20),
    "clip": (_clip, 3, 3),
}


class _Reader:
    """Turns a syntax tree into functions, refusing everything that is not listed above."""

    def __init__(self, text: str, start: int) -> None:
        self.text = text
        self.start = start
        self.names: set[str] = set()

    def summands(self, node: ast.expr) -> list[tuple[str, Node]]:
        chain: list[tuple[str, Node]] = []
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub) and len(chain) < 500:
            right = self.read(node.right, 1)
            sign = "-" if isinstance(node.op, ast.Sub) else ""
            text = ast.get_source_segment(self.text, node.right) or "?"
            chain.append((sign + text, _negated(right) if sign else right))
            node = node.left
        chain.append((ast.get_source_segment(self.text, node) or "?", self.read(node, 1)))
        return chain[::-1]

    def read(self, node: ast.expr, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self.refuse(node, "deeper nesting", f"at most {MAX_DEPTH} levels")
        if isinstance(node, ast.Constant):
            return self.read_number(node)
        if isinstance(node, ast.Name):
            return self.read_name(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            inner = self.read(node.operand, depth + 1)
            return inner if isinstance(node.op, ast.UAdd) else _negated(inner)
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            apply = _BINARY[type(node.op)]
            left, right = self.read(node.left, depth + 1), self.read(node.right, depth + 1)
            return lambda arrays: apply(left(arrays), right(arrays))
        if isinstance(node, ast.Call):
            return self.read_call(node, depth)
        raise self.refuse(node, type(node).__name__, "names, numbers, + - * / ** and log, exp, min, max, clip")

    def read_number(self, node: ast.Constant) -> Node:
        if isinstance(node.value, bool) or not isinstance(node.value, int | float) or abs(node.value) > 1e12:
            raise self.refuse(node, repr(node.value)[:30], "a number up to 1e12")
        value = float(node.value)
        return lambda arrays: value

    def read_name(self, node: ast.Name) -> Node:
        name = node.id
        if name in _FUNCTIONS:
            raise self.refuse(node, f"{name!r} without arguments", f"{name}(…)")
        self.names.add(name)
        return operator.itemgetter(name)

    def read_call(self, node: ast.Call, depth: int) -> Node:
        name = node.func.id if isinstance(node.func, ast.Name) else "?"
        if name not in _FUNCTIONS:
            raise self.refuse(node, f"a call of {name!r}", f"one of {', '.join(_FUNCTIONS)}")
        function, least, most = _FUNCTIONS[name]
        if node.keywords or not least <= len(node.args) <= most:
            expected = f"{least}" if least == most else f"{least} to {most}"
            raise self.refuse(node, f"{len(node.args) + len(node.keywords)} arguments of {name}", expected)
        arguments = [self.read(argument, depth + 1) for argument in node.args]
        return lambda arrays: function(*[argument(arrays) for argument in arguments])

    def refuse(self, node: ast.expr, found: str, expected: str) -> ExpressionInvalid:
        return ExpressionInvalid(self.start + node.col_offset + 1, found=found, expected=expected)


def _negated(inner: Node) -> Node:
    return lambda arrays: np.negative(inner(arrays))
