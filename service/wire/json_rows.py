"""JSON with one object per candidate: the readable encoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter, itemgetter

from service.wire.document import Candidate

_ID = attrgetter("id")
_FEATURES = attrgetter("features")
_GROUP = attrgetter("group")
_VECTOR = attrgetter("vector")


def ids_of(candidates: Sequence[Candidate]) -> list[str]:
    """Return the candidates' ids."""
    return list(map(_ID, candidates))


def groups_of(candidates: Sequence[Candidate]) -> list[str | None]:
    """Return the candidates' groups, None where one has none."""
    return list(map(_GROUP, candidates))


def vectors_of(candidates: Sequence[Candidate]) -> list[list[float] | None]:
    """Return the candidates' vectors, None where one has none."""
    return list(map(_VECTOR, candidates))


def items_of(candidates: Sequence[Candidate]) -> dict[str, Sequence[object]]:
    """Return one column per feature found at any candidate; one without it holds None there."""
    return columns_of(list(map(_FEATURES, candidates)))


def columns_of(rows: Sequence[Mapping[str, object]]) -> dict[str, Sequence[object]]:
    """Return one column per name found in any row."""
    if not rows:
        return {}
    names = tuple(rows[0])
    if set(map(len, rows)) == {len(names)}:
        try:
            return {name: list(map(itemgetter(name), rows)) for name in names}
        except KeyError:
            pass  # rows with as many names, but others
    every = {name: None for row in rows for name in row}
    return {name: [row.get(name) for row in rows] for name in every}
