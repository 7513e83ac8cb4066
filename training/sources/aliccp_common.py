"""The common features of Ali-CCP as a table on disk, looked up by common_feature_index, memory-mapped.

A folder holds one file of raw integers per field, and the indices; only the indices are held in memory (32 bytes per
line). Written once, whole or not at all. Legend: C lines of the file, L lines looked up, width as in `Field`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundle.files import new_folder
from training.errors import SourceEmpty, SourceInvalid
from training.sources.aliccp_fields import Field
from training.sources.aliccp_lines import COMMON, Ints, Words, parse_lines, read_pieces

_INDEX_FILE = "index.bin"
MISSING = -1
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)


class CommonTable:
    """The table in a folder that `write_common` wrote."""

    def __init__(self, folder: Path, path: Path, fields: Sequence[Field]) -> None:
        """Read the indices and map the ids.

        Raises:
            SourceInvalid: an index stands in two lines of `path`, the file that the table was made from.
        """
        self._words = np.fromfile(folder / _INDEX_FILE, np.uint64).reshape(-1, 2)
        keys = _keys(self._words)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        if (twice := np.flatnonzero(self._keys[1:] == self._keys[:-1])).size:
            first, second = (int(self._order[twice[0] + i]) + 1 for i in (0, 1))
            expected = "each common_feature_index once"
            raise SourceInvalid(f"{path}: line {second}", found=f"the index of line {first} again", expected=expected)
        self._ids = {
            field.column: np.memmap(folder / _file_of(field), np.int64, "r").reshape(-1, field.width)
            for field in fields
        }

    def lines_of(self, index: Words) -> Ints:
        """Return the line of each index [L, 2], from 0, or MISSING."""
        at_L = np.minimum(np.searchsorted(self._keys, _keys(index)), len(self._keys) - 1)
        line_L = self._order[at_L]
        return np.where((self._words[line_L] == index).all(axis=1), line_L, MISSING)

    def ids(self, field: Field, line_L: Ints) -> Ints:
        """Return a field's ids in the given lines [L, width]."""
        return np.asarray(self._ids[field.column][line_L])


def write_common(path: Path, fields: Sequence[Field], folder: Path) -> None:
    """Write the table of the file `path` to the new folder.

    Raises:
        LineInvalid, SourceEmpty, SourceUnreadable: see `training.errors`.
    """
    count = 0
    with new_folder(folder) as aside, ExitStack() as files:
        index_file = files.enter_context((aside / _INDEX_FILE).open("wb"))
        ids_files = [files.enter_context((aside / _file_of(field)).open("wb")) for field in fields]
        for piece in read_pieces(path, 0, path.stat().st_size):
            lines = parse_lines(piece, COMMON, path, count + 1)
            index_file.write(lines.index.tobytes())
            for field, file in zip(fields, ids_files, strict=True):
                file.write(field.ids(lines, len(lines.index)).tobytes())
            count += len(lines.index)
        if not count:
            raise SourceEmpty(str(path), found="no lines", expected="at least one line")


def _keys(index: Words) -> NDArray[np.uint64]:
    """Return one word per index; the two words themselves are compared after the look-up."""
    mixed = index * _MIX
    return np.asarray(mixed[:, 0] ^ (mixed[:, 1] >> np.uint64(29)) ^ (mixed[:, 1] << np.uint64(35)))


def _file_of(field: Field) -> str:
    return f"{field.column}.bin"
