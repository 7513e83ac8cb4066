"""Item ids → row numbers: an open-addressing hash index over ids kept as fixed-width words.

Ids are texts, as in rank requests; an integer id is its decimal text. An id is its UTF-8 bytes, padded with zero
bytes to W words of eight, so that hashing and comparing are a few array operations whatever the number of ids.

Legend: M items, S slots (a power of two, at least 4·M), N ids looked up, W words of an id.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from bundle import loops
from bundle.errors import ItemIdInvalid

Words = NDArray[np.uint64]
Rows = NDArray[np.int32]

WORD_BYTES = 8
LONGEST_ID_BYTES = 1024
NO_ROW = -1
_SEED = np.uint64(0x9E3779B97F4A7C15)
_PRIME = np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)


def words_of(ids: Sequence[str], words: int) -> tuple[Words, NDArray[np.bool_] | None]:
    """Return ids as words [N, words], and which of them do not fit in so many; None where all do."""
    padding = _padding(words)
    try:
        padded = np.array(ids, dtype=padding)
    except UnicodeEncodeError:
        padded = np.array([text.encode("utf-8", "surrogatepass") for text in ids], dtype=padding)
    words_NW = padded.view(np.uint64).reshape(len(ids), words + 1)
    beyond_N = words_NW[:, words] != 0  # an id that was cut goes on into the word behind the last
    if "\0" in "".join(ids):  # which padding cannot tell from its own
        beyond_N |= np.fromiter(("\0" in text for text in ids), np.bool_, len(ids))
    return words_NW[:, :words], beyond_N if beyond_N.any() else None


@cache
def _padding(words: int) -> np.dtype[np.bytes_]:
    """Return the type of an id in so many words, and one more."""
    return np.dtype(f"S{(words + 1) * WORD_BYTES}")


def words_needed(ids: Sequence[str]) -> int:
    """Return the words that the longest of some ids takes.

    Raises:
        ItemIdInvalid: an id is empty, longer than 1,024 bytes, or holds a zero byte.
    """
    sizes = [len(text.encode("utf-8", "surrogatepass")) for text in ids]
    for text, size in zip(ids, sizes, strict=True):
        if not 0 < size <= LONGEST_ID_BYTES or "\0" in text:
            expected = f"1 to {LONGEST_ID_BYTES} bytes without zero bytes"
            raise ItemIdInvalid("item id", found=repr(text[:60]), expected=expected)
    return -(-max(sizes, default=1) // WORD_BYTES)


def build_index(words_MW: Words) -> Rows:
    """Return the index [S]: the row number of the item in each slot, −1 in an empty one.

    All rows step on together: who finds a free slot takes it (of several the last one), the others move to the next.

    Raises:
        ItemIdInvalid: an id stands twice.
    """
    rows = len(words_MW)
    index = np.full(_slots(rows), NO_ROW, dtype=np.int32)
    mask = len(index) - 1
    pending = np.arange(rows, dtype=np.int32)
    slot = _first_slot(words_MW, len(index))
    while len(pending):
        free = index[slot] == NO_ROW
        index[slot[free]] = pending[free]
        holder = index[slot]
        lost = holder != pending
        pending, slot, holder = pending[lost], slot[lost], holder[lost]
        same = (words_MW[pending] == words_MW[holder]).all(axis=1)
        if same.any():
            at = int(np.argmax(same))
            twice = words_MW[pending[at]].tobytes().rstrip(b"\0").decode("utf-8", "replace")
            pair = sorted((int(pending[at]), int(holder[at])))
            raise ItemIdInvalid(f"item id {twice!r}", found=f"it in rows {pair[0]} and {pair[1]}", expected="it once")
        slot = (slot + 1) & mask
    return index


def find_rows(index: Rows, words_MW: Words, ids: Sequence[str]) -> Rows:
    """Return the row of each id [N], −1 where there is none."""
    if loops.compiled is not None:
        found_N = np.empty(len(ids), dtype=np.int32)
        loops.compiled.find_rows(index, words_MW, ids, found_N)
        return found_N
    wanted_NW, beyond_N = words_of(ids, words_MW.shape[1])
    slot_N = _first_slot(wanted_NW, len(index))
    found_N = index[slot_N]
    missed_N = found_N != NO_ROW
    missed_N &= ~_equal(words_MW, found_N, wanted_NW)  # row −1 is read as the last one, and stays missed
    looking = missed_N.nonzero()[0]
    while len(looking):
        slot_N[looking] = slot = (slot_N[looking] + 1) & (len(index) - 1)
        found_N[looking] = row = index[slot]
        looking = looking[(row != NO_ROW) & ~_equal(words_MW, row, wanted_NW[looking])]
    if beyond_N is not None:
        found_N[beyond_N] = NO_ROW
    return found_N


def _equal(words_MW: Words, rows_N: Rows, wanted_NW: Words) -> NDArray[np.bool_]:
    """Return whether each row holds the id wanted."""
    equal_N: NDArray[np.bool_] = words_MW[rows_N, 0] == wanted_NW[:, 0]
    for word in range(1, words_MW.shape[1]):
        equal_N &= words_MW[rows_N, word] == wanted_NW[:, word]
    return equal_N


def _slots(rows: int) -> int:
    """Return the number of slots: at least four per item, so that nine of ten are found at once."""
    return 1 << max(1, 4 * rows - 1).bit_length()


def _first_slot(words_NW: Words, slots: int) -> NDArray[np.int64]:
    """Return the slot [N] at which the search for each id begins: the high bits of a multiplicative hash."""
    hashed = np.full(len(words_NW), _SEED)
    for word in range(words_NW.shape[1]):
        hashed ^= words_NW[:, word]
        hashed *= _PRIME
        hashed ^= hashed >> _HALF
    hashed *= _PRIME
    return (hashed >> np.uint64(64 - (slots.bit_length() - 1))).astype(np.int64)
