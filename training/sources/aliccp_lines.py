"""Lines of Ali-CCP's raw files → numbers, a piece of a file at a time, without a Python loop over lines.

A line is `head,…,head,feature_num,features`; features are `field\\x02id\\x03value`, joined by \\x01. Every line is
checked; the value of a feature is not used. Knows nothing of schemas. Legend: L lines, K features of all lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from training.errors import LineInvalid, SourceUnreadable

PIECE_BYTES = 1 << 20
"""Text parsed at a time: what stays in a core's cache is parsed half as fast again as pieces of 8 MiB."""
SKELETON = ("sample_id", "click", "buy", "common_feature_index", "feature_num")
COMMON = ("common_feature_index", "feature_num")
INDEX_BYTES = 16
ID_DIGITS = 16

_COMMA, _NEWLINE = 44, 10
_CYCLE = np.array([2, 3, 1], np.uint8)
_IS_SEPARATOR = np.isin(np.arange(256), [1, 2, 3, _COMMA, _NEWLINE])
_PADDING = 16
_KEPT = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)
_ZEROS = np.array([int.from_bytes(b"0" * (8 - size), "little") for size in range(9)], np.uint64)

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Lines:
    """The checked lines of a piece.

    Attributes:
        labels: click and buy bool [L, 2]; without columns where the file has none.
        index: the common_feature_index as two words [L, 2].
        line_K: the line of each feature, rising.
        field_K: its field's name, as one word (see `packed`), 0 where that is longer than 8 bytes.
        id_K: its id.
    """

    labels: NDArray[np.bool_]
    index: Words
    line_K: Ints
    field_K: Words
    id_K: Ints


def packed(name: str) -> int:
    """Return a field's name of at most 8 bytes as one word."""
    return int.from_bytes(name.encode(), "little")


def read_pieces(path: Path, start: int, end: int) -> Iterator[bytes]:
    """Yield the lines that begin in bytes [start, end) of a file, in pieces of whole lines.

    Raises:
        SourceUnreadable: a line longer than a piece, or a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            at = _next_line(file, start)
            while at < end:
                file.seek(at)
                piece = file.read(min(PIECE_BYTES, end - at))
                whole = piece[: piece.rfind(b"\n") + 1]
                if not whole or (at + len(piece) == end and len(whole) < len(piece)):
                    whole = piece + file.readline(PIECE_BYTES)
                if not whole.endswith(b"\n") and file.read(1):
                    expected = f"at most {PIECE_BYTES}, ended by a newline"
                    raise SourceUnreadable(f"{path}: byte {at}", found="a longer line", expected=expected)
                at += len(whole)
                yield (whole if whole.endswith(b"\n") else whole + b"\n").replace(b"\r\n", b"\n")
    except OSError as exc:
        raise SourceUnreadable(str(path), found=exc.strerror, expected="a readable file") from exc


def _next_line(file: BinaryIO, start: int) -> int:
    """Return where the first line that begins at `start` or later begins."""
    if start:
        file.seek(start - 1)
        file.readline(PIECE_BYTES)
    return file.tell()


def parse_lines(piece: bytes, heads: Sequence[str], path: Path, first_line: int) -> Lines:
    """Return the lines of a piece; `heads` are SKELETON or COMMON, `first_line` the number of its first line.

    Raises:
        LineInvalid: names the file, the line, what was found and what is expected.
    """
    lines = _parsed(piece, len(heads))
    if lines is None:
        for number, line in enumerate(piece.split(b"\n")[:-1]):
            check_line(line, heads, f"{path}: line {first_line + number}")
        msg = f"{path}: the two parsers disagree"
        raise AssertionError(msg)
    return lines


def _parsed(piece: bytes, heads: int) -> Lines | None:
    """Return the lines, or None if anything is wrong with any."""
    text = np.frombuffer(piece + bytes(_PADDING), np.uint8)
    at = np.flatnonzero(_IS_SEPARATOR[text[: len(piece)]])
    kind = text[at]
    last_L = np.flatnonzero(kind == _NEWLINE)
    first_L = np.concatenate([np.zeros(1, np.int64), last_L[:-1] + 1])
    separators_L = last_L - first_L + 1
    if ((separators_L - heads < 3) | ((separators_L - heads) % 3 != 0)).any():
        return None
    slot = np.arange(len(at)) - np.repeat(first_L + heads, separators_L)
    wanted = np.where(slot < 0, _COMMA, _CYCLE[slot % 3])
    wanted[last_L] = _NEWLINE
    starts = np.concatenate([np.zeros(1, np.int64), at[:-1] + 1])
    lengths = at - starts
    if (kind != wanted).any() or (lengths == 0).any():
        return None
    named = np.flatnonzero((slot >= 0) & (slot % 3 == 0))
    eight = np.ndarray((len(text) - 7,), np.uint64, text, strides=(1,))
    id_K, ids_good = _numbers(eight, starts[named + 1], lengths[named + 1])
    count_L, counts_good = _numbers(eight, starts[first_L + heads - 1], lengths[first_L + heads - 1])
    index = first_L + heads - 2
    if not (ids_good and counts_good) or (count_L != (separators_L - heads) // 3).any():
        return None
    if (lengths[index] > INDEX_BYTES).any():
        return None
    labels = np.zeros((len(last_L), 0), np.bool_)
    if heads == len(SKELETON):
        digits = text[starts[first_L[:, None] + [1, 2]]]
        if (lengths[first_L[:, None] + [1, 2]] != 1).any() or not np.isin(digits, [48, 49]).all():
            return None
        labels = digits == 49
    short = lengths[named] <= 8
    field_K = np.where(short, eight[starts[named]] & _KEPT[np.minimum(lengths[named], 8)], np.uint64(0))
    line_K = np.repeat(np.arange(len(last_L)), count_L)
    return Lines(labels, _index_words(eight, starts[index], lengths[index]), line_K, field_K, id_K)


def _index_words(eight: Words, starts: Ints, lengths: Ints) -> Words:
    low = eight[starts] & _KEPT[np.minimum(lengths, 8)]
    high = eight[starts + 8] & _KEPT[np.clip(lengths - 8, 0, 8)]
    return np.stack([low, high], axis=1)


def _numbers(eight: Words, starts: Ints, lengths: Ints) -> tuple[Ints, bool]:
    """Return decimal numbers, and whether all are of digits only and at most ID_DIGITS of them."""
    if (lengths > ID_DIGITS).any():
        return np.zeros(0, np.int64), False
    number, good = _eight_digits(eight, starts, np.minimum(lengths, 8))
    if (lengths > 8).any():
        long = np.flatnonzero(lengths > 8)
        high, high_good = _eight_digits(eight, starts[long], lengths[long] - 8)
        low, low_good = _eight_digits(eight, starts[long] + lengths[long] - 8, np.full(len(long), 8))
        number[long] = high * 10**8 + low
        good = good and high_good and low_good
    return number, good


def _eight_digits(eight: Words, starts: Ints, lengths: Ints) -> tuple[Ints, bool]:
    """Return numbers of up to eight digits: all digits of a word at once, by three multiplications."""
    word = (eight[starts] << (8 * (8 - lengths)).astype(np.uint64)) | _ZEROS[lengths]
    outside = (word + np.uint64(0x4646464646464646)) | (word - np.uint64(0x3030303030303030))
    good = not (outside & np.uint64(0x8080808080808080)).any()
    word = (word & np.uint64(0x0F0F0F0F0F0F0F0F)) * np.uint64(2561) >> np.uint64(8)
    word = (word & np.uint64(0x00FF00FF00FF00FF)) * np.uint64(6553601) >> np.uint64(16)
    word = (word & np.uint64(0x0000FFFF0000FFFF)) * np.uint64(42949672960001) >> np.uint64(32)
    return word.astype(np.int64), good


def check_line(line: bytes, heads: Sequence[str], place: str) -> None:
    """Check one line, part by part.

    Raises:
        LineInvalid: as `parse_lines`.
    """
    parts = line.split(b",")
    if len(parts) != len(heads) + 1:
        raise LineInvalid(place, found=f"{len(parts)} columns", expected=f"{', '.join(heads)}, features")
    given = dict(zip(heads, parts[:-1], strict=True))
    for name, value in given.items():
        _check_head(name, value, place)
    features = parts[-1].split(b"\x01")
    for number, feature in enumerate(features, 1):
        _check_feature(feature, f"{place}: feature {number}")
    if int(given["feature_num"]) != len(features):
        raise LineInvalid(
            f"{place}: feature_num", found=int(given["feature_num"]), expected=f"{len(features)} features"
        )


def _check_head(name: str, value: bytes, place: str) -> None:
    if name in ("click", "buy"):
        good, expected = value in (b"0", b"1"), "0 or 1"
    elif name == "feature_num":
        good, expected = _is_number(value), "a number"
    else:
        limit = INDEX_BYTES if name == "common_feature_index" else len(value)
        good, expected = 0 < len(value) <= limit and b"\x01" not in value, f"1 to {INDEX_BYTES} bytes"
    if not good or {1, 2, 3} & set(value):
        raise LineInvalid(f"{place}: {name}", found=_shown(value), expected=expected)


def _check_feature(feature: bytes, place: str) -> None:
    field, after_field, rest = feature.partition(b"\x02")
    id_, after_id, value = rest.partition(b"\x03")
    expected = "field\\x02id\\x03value, joined by \\x01"
    if not (field and after_field and id_ and after_id and value) or {2, 3} & set(value) or 3 in field or 2 in id_:
        raise LineInvalid(place, found=_shown(feature), expected=expected)
    if not _is_number(id_):
        raise LineInvalid(f"{place}: id", found=_shown(id_), expected=f"at most {ID_DIGITS} digits")


def _is_number(value: bytes) -> bool:
    return value.isdigit() and len(value) <= ID_DIGITS


def _shown(value: bytes) -> str:
    return repr(value[:60])[1:] + ("…" if len(value) > 60 else "")
