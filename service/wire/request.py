"""What every encoding of a rank request is parsed to, and the checks that all of them share.

Knows neither bytes nor the model: columns hold raw values, still to be encoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from bundle.columns import Column, ListColumn
from service.errors import BodyMalformed, DuplicateCandidate, TooManyCandidates

RawColumn = Column | ListColumn | Sequence[object]
"""Typed columns as they are, or one Python value per row, None where it is missing."""
Assignments = Mapping[str, str]
"""Layer → variant."""
LONGEST_TEXT = 256


class RankRequest(Struct, frozen=True):
    """One user, N candidates.

    Attributes:
        request_id: echoed in the answer and in logs; empty to have one made.
        user_id: whom the feed is for; decides the user's variants.
        ids: the candidates' ids, all different, in the order that breaks ties.
        user: user features, one row.
        context: context features, one row.
        items: item features, one row per candidate.
        groups: what rerank rules group by (an author, say), one per candidate, or None.
        vectors_ND: item vectors for diversity rules, float64 [N, D], or None.
        model: name of the model to use, or None for the only one.
        top_k: how many candidates to return, or None for all.
        explain: whether to show how each score came to be.
        force_variant: variants wanted in place of the assigned ones.
        privileged: whether the caller holds an admin key, and so may force for any user.
    """

    request_id: str
    user_id: str
    ids: Sequence[str]
    user: Mapping[str, RawColumn] = field(default_factory=dict)
    context: Mapping[str, RawColumn] = field(default_factory=dict)
    items: Mapping[str, RawColumn] = field(default_factory=dict)
    groups: Sequence[str | None] | None = None
    vectors_ND: NDArray[np.float64] | None = None
    model: str | None = None
    top_k: int | None = None
    explain: bool = False
    force_variant: Assignments = field(default_factory=dict)
    privileged: bool = False


def vectors_of(rows: Sequence[Sequence[float] | None] | None) -> NDArray[np.float64] | None:
    """Return item vectors as one array [N, D]; None where no candidate has one.

    Raises:
        BodyMalformed: a candidate without a vector among others with one, vectors of different or no length, or a
            number that is not finite.
    """
    if rows is None or rows.count(None) == len(rows):
        return None
    sizes = [None if row is None else len(row) for row in rows]
    size = next(found for found in sizes if found is not None)
    for row, found in enumerate(sizes):
        if found != size or not found:
            shown = "none" if found is None else f"{found} numbers"
            expected = f"{size}, as the first one has" if size else "at least one number"
            raise BodyMalformed(f"candidates[{row}].vector", found=shown, expected=expected)
    vectors_ND = np.array(rows, dtype=np.float64)
    finite_N = np.isfinite(vectors_ND).all(axis=1)
    if not finite_N.all():
        row = int(np.argmin(finite_N))
        raise BodyMalformed(f"candidates[{row}].vector", found="NaN or infinity", expected="finite numbers")
    return vectors_ND


def check_ids(ids: Sequence[str], max_candidates: int) -> None:
    """Check that there are not too many candidates and none stands twice.

    Raises:
        TooManyCandidates, DuplicateCandidate: see `service.errors`.
    """
    if len(ids) > max_candidates:
        raise TooManyCandidates("candidates", found=len(ids), expected=f"at most {max_candidates}")
    if len(set(ids)) != len(ids):
        seen: dict[str, int] = {}
        for row, candidate in enumerate(ids):
            if (first := seen.setdefault(candidate, row)) != row:
                raise DuplicateCandidate(
                    f"candidates[{row}].id", found=f"{candidate!r} again", expected=f"it once (candidates[{first}])"
                )


def plain(column: RawColumn) -> Sequence[object]:
    """Return one Python value per row, None where it is missing; a list column's rows are tuples."""
    if isinstance(column, ListColumn):
        items = column.items.plain().tolist()
        edges = column.offsets.tolist()
        return [tuple(items[start:end]) for start, end in zip(edges, edges[1:], strict=False)]
    if isinstance(column, Column):
        values: list[object] = column.plain().tolist()
        if column.missing is None:
            return values
        return [None if missing else value for value, missing in zip(values, column.missing.tolist(), strict=True)]
    return column


def first_value(column: RawColumn) -> object:
    """Return the value of a column of one row."""
    value = plain(column)[0]
    return list(value) if isinstance(value, tuple) else value


def numbers(column: RawColumn) -> NDArray[np.float64]:
    """Return a column's numbers, NaN where there is none."""
    values = plain(column)
    return np.array([v if isinstance(v, int | float) else np.nan for v in values], dtype=np.float64)


def check_length(thing: str, text: str, longest: int = LONGEST_TEXT) -> None:
    """Check a text that goes into logs and answers.

    Raises:
        BodyMalformed: it is longer than `longest` characters.
    """
    if len(text) > longest:
        raise BodyMalformed(thing, found=f"{len(text)} characters", expected=f"at most {longest}")
