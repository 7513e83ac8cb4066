"""Many candidates' JSON at once: rows of one width, filled column by column by numpy.

Half the time of `answer`'s text by text. JSON allows spaces after a value, so ids and scores are filled up to the
widest; probabilities get 12 decimals, or 16 where a column holds smaller ones: both give back the same float32. What
does not fit (ids that JSON must escape, probabilities of 1 or below 2^-27) is left to `answer`.

Legend: K candidates, C columns of probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

FEWEST = 40
"""Rows below which text by text is as fast."""
_WIDEST_ID = 64
_SMALLEST, _SMALLEST_SHORT = 2.0**-27, 2.0**-14
"""Smallest probabilities of which 16 and 12 decimals, cut off, are nearer to it than to any other float32."""
_GROUPS_SHORT, _GROUPS_LONG = 3, 4
_DIGITS = np.array([b"%04d" % number for number in range(10_000)]).view(np.uint32)
"""The four characters of each number below 10,000."""


def wide_rows(
    ids: Sequence[str],
    scores: Sequence[bytes],
    columns_KC: NDArray[np.float32],
    tasks: tuple[str, ...],
    *,
    latent: bool,
) -> bytes | None:
    """Return the JSON objects of candidates, with commas between them; None where something does not fit.

    Args:
        ids: in order of position, at least one.
        scores: the JSON of each score.
        columns_KC: P(UP) and P(task, UP) where `latent`, and P(task).
        tasks: names, which need no escapes.
    """
    columns_CK = np.ascontiguousarray(columns_KC.T).astype(np.float64)
    smallest = columns_CK.min(axis=1).tolist()
    if min(smallest) < _SMALLEST or columns_CK.max() >= 1:
        return None
    joined = "".join(ids)
    if not joined.isascii() or not joined.isprintable() or '"' in joined or "\\" in joined:
        return None
    ids_K = _filled([b'"%b"' % text.encode() for text in ids])
    scores_K = _filled(scores)
    if ids_K.itemsize > _WIDEST_ID:
        return None
    groups = tuple(_GROUPS_SHORT if value >= _SMALLEST_SHORT else _GROUPS_LONG for value in smallest)
    row, template = _row(tasks, latent, groups, ids_K.itemsize, scores_K.itemsize)
    rows_KW = np.empty((len(ids), row.itemsize), dtype=np.uint8)
    rows_KW[:] = template
    rows_K = rows_KW.view(row)[:, 0]
    rows_K["id"], rows_K["score"] = ids_K, scores_K
    digits_CKG = _digits(columns_CK, max(groups))
    for column, kept in enumerate(groups):
        digits_KG = digits_CKG[column] if kept == max(groups) else np.ascontiguousarray(digits_CKG[column, :, :kept])
        rows_K[f"{column}"] = digits_KG.view(f"V{4 * kept}")[:, 0]
    return rows_KW.tobytes()[:-1]


def _filled(texts: Sequence[bytes]) -> NDArray[np.void]:
    """Return texts with spaces behind them, as wide as the widest, [K]."""
    width = max(map(len, texts))
    return np.frombuffer((b"%%-%db" % width * len(texts)) % tuple(texts), f"V{width}")


def _digits(values_CK: NDArray[np.float64], groups: int) -> NDArray[np.uint32]:
    """Return the first decimals, four characters a group, [C, K, G], of numbers in [0, 1)."""
    digits_CKG = np.empty((*values_CK.shape, groups), dtype=np.uint32)
    whole = (values_CK * 10.0 ** (4 * groups)).astype(np.int64)
    high = whole // 10**8
    low = (whole - high * 10**8).astype(np.uint32)
    if groups == _GROUPS_LONG:
        high = high.astype(np.uint32)
        highest = high // 10**4
        digits_CKG[:, :, 0] = _DIGITS[highest]
        high -= highest * 10**4
    digits_CKG[:, :, -3] = _DIGITS[high]
    middle = low // 10**4
    digits_CKG[:, :, -2] = _DIGITS[middle]
    digits_CKG[:, :, -1] = _DIGITS[low - middle * 10**4]
    return digits_CKG


@lru_cache(maxsize=256)
def _row(
    tasks: tuple[str, ...], latent: bool, groups: tuple[int, ...], id_bytes: int, score_bytes: int
) -> tuple[np.dtype[np.void], NDArray[np.uint8]]:
    """Return where a row's values stand, by the names id, score and the columns' numbers, and a row without them."""
    text = bytearray()
    places: dict[str, tuple[np.dtype[np.void], int]] = {}

    def place(name: str, size: int) -> None:
        places[name] = np.dtype(f"V{size}"), len(text)
        text.extend(b" " * size)

    def number(name: str) -> None:
        text.extend(f'"{name}":0.'.encode())
        column = len(places) - 2
        place(f"{column}", 4 * groups[column])

    def by_task(name: str) -> None:
        text.extend(f',"{name}":'.encode())
        for at, task in enumerate(tasks):
            text.extend(b"," if at else b"{")
            number(task)
        text.extend(b"}")

    text.extend(b'{"id":')
    place("id", id_bytes)
    text.extend(b',"score":')
    place("score", score_bytes)
    if latent:
        text.extend(b",")
        number("p_up")
        by_task("p_joint")
    by_task("p")
    text.extend(b"},")
    names, values = list(places), list(places.values())
    row = np.dtype(
        {
            "names": names,
            "formats": [kind for kind, _ in values],
            "offsets": [offset for _, offset in values],
            "itemsize": len(text),
        }
    )
    return row, np.frombuffer(bytes(text), np.uint8)
