"""Many candidates' JSON at once: rows of one width, filled column by column by numpy.

Half the time of `answer`'s text by text. JSON allows spaces after a value, so ids and scores are filled up to the
widest; probabilities get 12 decimals, or 16 where a column holds smaller ones: both give back the same float32. What
does not fit (ids that JSON must escape, probabilities of 1 or below 2^-27) is left to `answer`.

Legend: N candidates, K of them by position, C columns of probabilities, G groups of four decimals.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import orjson
from numpy.typing import NDArray

FEWEST = 200
"""Rows below which text by text is as fast, where the model has just thrown out of the caches what this touches."""
_WIDEST_ID = 64
_SMALLEST, _SMALLEST_SHORT = 2.0**-27, 2.0**-14
"""Smallest probabilities of which 16 and 12 decimals, cut off, are nearer to it than to any other float32."""
_GROUPS_SHORT, _GROUPS_LONG = 3, 4
_DIGITS = np.array([b"%04d" % number for number in range(10_000)]).view(np.uint32)
"""The four characters of each number below 10,000."""


def wide_rows(
    ids: Sequence[str],
    scores_N: NDArray[np.float64],
    columns_CN: NDArray[np.float64],
    template: bytes,
    order_K: NDArray[np.intp],
) -> bytes | None:
    """Return the JSON objects of candidates in an order, with commas between them; None where something does not fit.

    Args:
        ids: at least one.
        scores_N: the scores.
        columns_CN: probabilities, float32 values.
        template: one candidate's JSON with %b for its id, in quotes, its score, and each column's value.
        order_K: which candidates, by position.
    """
    smallest = columns_CN.min(axis=1).tolist()
    if min(smallest) < _SMALLEST or columns_CN.max() >= 1:
        return None
    quoted = ('"' + '"\n"'.join(ids) + '"').encode("utf-8", "surrogatepass")
    ids_N = _filled(quoted, b"\n", len(ids))
    if ids_N is None or ids_N.itemsize > _WIDEST_ID or not _need_no_escapes(quoted, len(ids)):
        return None
    scores_text = orjson.dumps(np.ascontiguousarray(scores_N), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    scores_filled_N = _filled(scores_text, b",", len(ids))
    assert scores_filled_N is not None
    groups = tuple(_GROUPS_SHORT if value >= _SMALLEST_SHORT else _GROUPS_LONG for value in smallest)
    row, blank = _row(template, groups, ids_N.itemsize, scores_filled_N.itemsize)
    rows_NW = np.empty((len(ids), row.itemsize), dtype=np.uint8)
    rows_NW[:] = blank
    rows_N = rows_NW.view(row)[:, 0]
    rows_N["id"], rows_N["score"] = ids_N, scores_filled_N
    digits_CNG = _digits(columns_CN, max(groups))
    for column, kept in enumerate(groups):
        digits_NG = digits_CNG[column] if kept == max(groups) else np.ascontiguousarray(digits_CNG[column, :, :kept])
        rows_N[f"{column}"] = digits_NG.view(f"V{4 * kept}")[:, 0]
    return rows_NW.view(f"V{row.itemsize}")[:, 0].take(order_K).tobytes()[:-1]


def _need_no_escapes(quoted: bytes, texts: int) -> bool:
    """Return whether texts, in quotes and one a line, stand in JSON as they are."""
    if not quoted.isascii() or b"\\" in quoted or quoted.count(b'"') != 2 * texts:
        return False
    return int((np.frombuffer(quoted, np.uint8) < 32).sum()) == texts - 1


def _filled(joined: bytes, separator: bytes, texts: int) -> NDArray[np.void] | None:
    """Return joined texts with spaces behind each, as wide as the widest, [texts]; None if they are not so many."""
    ends_N = np.flatnonzero(np.frombuffer(joined + separator, np.uint8) == separator[0])
    if len(ends_N) != texts:
        return None
    starts_N = np.zeros_like(ends_N)
    starts_N[1:] = ends_N[:-1] + 1
    width = int((ends_N - starts_N).max())
    at_NW = np.minimum(starts_N[:, None] + np.arange(width), ends_N[:, None])
    letters = np.frombuffer((joined + separator).replace(separator, b" "), np.uint8)
    filled_N: NDArray[np.void] = letters[at_NW].view(f"V{width}")[:, 0]
    return filled_N


def _digits(values_CN: NDArray[np.float64], groups: int) -> NDArray[np.uint32]:
    """Return the first decimals, four characters a group, [C, N, G], of numbers in [0, 1)."""
    digits_CNG = np.empty((*values_CN.shape, groups), dtype=np.uint32)
    whole = (values_CN * 10.0 ** (4 * groups)).astype(np.int64)
    high = whole // 10**8
    low = (whole - high * 10**8).astype(np.uint32)
    if groups == _GROUPS_LONG:
        high = high.astype(np.uint32)
        highest = high // 10**4
        digits_CNG[:, :, 0] = _DIGITS[highest]
        high -= highest * 10**4
    digits_CNG[:, :, -3] = _DIGITS[high]
    middle = low // 10**4
    digits_CNG[:, :, -2] = _DIGITS[middle]
    digits_CNG[:, :, -1] = _DIGITS[low - middle * 10**4]
    return digits_CNG


@lru_cache(maxsize=256)
def _row(
    template: bytes, groups: tuple[int, ...], id_bytes: int, score_bytes: int
) -> tuple[np.dtype[np.void], NDArray[np.uint8]]:
    """Return where a row's values stand, by the names id, score and the columns' numbers, and a row without them."""
    before, *between = template.replace(b'"%b"', b"%b", 1).split(b"%b")  # ids bring their quotes
    text, offsets = bytearray(before), []
    widths = (id_bytes, score_bytes, *(4 * kept for kept in groups))
    for at, (width, after) in enumerate(zip(widths, between, strict=True)):
        text += b"0." if at >= 2 else b""
        offsets.append(len(text))
        text += b" " * width + after
    text += b","
    names = ["id", "score", *(f"{column}" for column in range(len(groups)))]
    formats = [f"V{width}" for width in widths]
    row = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": len(text)})
    return row, np.frombuffer(bytes(text), np.uint8)
