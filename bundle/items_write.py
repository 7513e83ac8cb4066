"""Writes the arrays of an item table a bounded piece at a time; `bundle.items` reads them.

Legend: M items, W words of an id.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from bundle.encode import EncodedPart
from bundle.items import CODES_FILE, GIVEN_FILE, IDS_FILE, INDEX_FILE, VALUES_FILE
from bundle.items_index import Words, build_index, words_needed, words_of


class GrowingArray:
    """A .npy file of rows that are appended piece by piece; whole once closed."""

    def __init__(self, path: Path, dtype: np.dtype[np.generic], width: int) -> None:
        """Open a new file for rows of `width` values."""
        self._dtype, self._width, self.rows = dtype, width, 0
        self._file: BinaryIO = path.open("wb")
        self._write_header()

    def append(self, piece: NDArray[np.generic]) -> None:
        """Add rows.

        Raises:
            ValueError: they are of another dtype or width.
        """
        if piece.dtype != self._dtype or piece.shape[1:] != (self._width,):
            msg = f"rows: got {piece.dtype}{list(piece.shape)}, want {self._dtype}[any, {self._width}]"
            raise ValueError(msg)
        self._file.write(np.ascontiguousarray(piece).data.cast("B") if piece.size else b"")
        self.rows += len(piece)

    def close(self) -> None:
        """Write the number of rows into the header; its length allows for any number."""
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        header = {"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self.rows, self._width)}
        npy.write_array_header_1_0(self._file, header)

    def __enter__(self) -> Self:
        """Return the array."""
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        """Close the file."""
        self.close()


class FeatureWriter:
    """Writes ids, index, encoded features and which of them were given into a folder; closes its files at the end."""

    def __init__(self, folder: Path, codes: int, values: int, features: int) -> None:
        """Open the files for items of so many code and value columns and features."""
        self._folder = folder
        self._codes = GrowingArray(folder / CODES_FILE, np.dtype(np.int32), codes)
        self._values = GrowingArray(folder / VALUES_FILE, np.dtype(np.float32), values)
        self._given = GrowingArray(folder / GIVEN_FILE, np.dtype(np.bool_), features)
        self._ids: list[Words] = []
        self._given_M = np.zeros(features, dtype=np.int64)

    @property
    def rows(self) -> int:
        """Items so far."""
        return self._codes.rows

    def append(self, ids: Sequence[str], encoded: EncodedPart, given_NF: NDArray[np.bool_]) -> None:
        """Add items.

        Raises:
            ItemIdInvalid: an id is empty, too long or holds a zero byte.
        """
        words, _ = words_of(ids, words_needed(ids))
        self._ids.append(np.ascontiguousarray(words))
        self._codes.append(encoded.codes_NC)
        self._values.append(encoded.values_NV)
        self._given.append(given_NF)
        self._given_M += given_NF.sum(axis=0)

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        """Close the files."""
        for array in (self._codes, self._values, self._given):
            array.close()

    def finish(self) -> NDArray[np.float64]:
        """Write ids and index; return the share of items that have a value, by feature.

        Raises:
            ItemIdInvalid: an id stands twice.
        """
        width, rows = max(words.shape[1] for words in self._ids), self.rows
        words_MW = np.zeros((rows, width), dtype=np.uint64)
        at = 0
        for words in self._ids:
            words_MW[at : at + len(words), : words.shape[1]] = words
            at += len(words)
        np.save(self._folder / INDEX_FILE, build_index(words_MW))
        np.save(self._folder / IDS_FILE, words_MW)
        return self._given_M / rows
