"""The item table of a bundle: what its graphs need of each item, keyed by item id, so that requests may carry ids only.

Beside model.onnx (which takes the items' features) lie two graphs of the same weights, cut at the item half:
item_rows.onnx makes an item's row of its features, rank_rows.onnx ranks rows. What item_rows.onnx made of every item
of the table is kept in items.rows.npy; all arrays are memory-mapped, so that processes share them. Encoded features
are kept too, for candidates that bring some features of their own.

Legend: M items, S index slots, W words of an id, C code columns, V value columns, F item features, N candidates.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundle.columns import Column, ListColumn
from bundle.encode import EncodedPart, PartEncoder
from bundle.errors import ItemFileInvalid, ItemIndexInvalid
from bundle.golden import Golden, read_golden
from bundle.items_index import NO_ROW, Rows, Words, find_rows
from bundle.manifest import ITEMS_GOLDEN_FILE, ItemTableEntry, Manifest

IDS_FILE = "items.ids.npy"
INDEX_FILE = "items.index.npy"
CODES_FILE = "items.codes.npy"
VALUES_FILE = "items.values.npy"
GIVEN_FILE = "items.given.npy"
ROWS_FILE = "items.rows.npy"
GOLDEN_IDS = "ids"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class ItemTable:
    """A checked item table.

    Attributes:
        entry: what the manifest says of it.
        ids_MW: the items' ids as words.
        index_S: where to look for an id.
        codes_MC, values_MV: encoded item features.
        given_MF: whether the table held a value, in the order of `feature_names`.
        rows_MB: the items' rows, which rank_rows.onnx takes.
        golden_ids, golden: items of the table, and the request of them that must be reproduced.
    """

    entry: ItemTableEntry
    ids_MW: Words
    index_S: Rows
    codes_MC: NDArray[np.int32]
    values_MV: NDArray[np.float32]
    given_MF: NDArray[np.bool_]
    rows_MB: NDArray[np.generic]
    golden_ids: tuple[str, ...]
    golden: Golden

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.ids_MW)

    def find(self, ids: Sequence[str]) -> Rows:
        """Return the row of each id [N], −1 where the table has no such item."""
        return find_rows(self.index_S, self.ids_MW, ids)

    def features(self, rows: Rows) -> EncodedPart:
        """Return the encoded features of rows; what was missing in the table is not counted here."""
        return EncodedPart(self.codes_MC[rows], self.values_MV[rows], {})


def read_items(folder: Path, manifest: Manifest, encoder: PartEncoder) -> ItemTable | None:
    """Return the item table of a bundle whose files are whole; None where it has none.

    Raises:
        ItemFileInvalid, ItemIndexInvalid, GoldenInvalid: see `bundle.errors`.
    """
    entry = manifest.items
    if entry is None:
        return None
    count, codes, values = entry.count, encoder.code_columns, encoder.value_columns
    index = _array(folder / INDEX_FILE, np.int32, (None,))
    slots = len(index)
    if slots & (slots - 1) or slots <= count:
        raise ItemIndexInvalid(str(folder / INDEX_FILE), found=f"{slots} slots", expected=f"a power of two > {count}")
    for piece in _pieces(index):
        if piece.min() < NO_ROW or piece.max() >= count:
            found = f"rows {piece.min()} to {piece.max()}"
            raise ItemIndexInvalid(str(folder / INDEX_FILE), found=found, expected=f"−1 to {count - 1}")
    golden_ids = _golden_ids(folder / ITEMS_GOLDEN_FILE)
    table = ItemTable(
        entry=entry,
        ids_MW=_array(folder / IDS_FILE, np.uint64, (count, None)),
        index_S=index,
        codes_MC=_array(folder / CODES_FILE, np.int32, (count, codes)),
        values_MV=_array(folder / VALUES_FILE, np.float32, (count, values)),
        given_MF=_array(folder / GIVEN_FILE, np.bool_, (count, len(encoder.names))),
        rows_MB=_array(folder / ROWS_FILE, np.dtype(entry.row.dtype), (count, int(entry.row.shape[1]))),
        golden_ids=golden_ids,
        golden=read_golden(folder, manifest, ITEMS_GOLDEN_FILE),
    )
    golden_rows = table.find(golden_ids)
    if (golden_rows == NO_ROW).any():
        missed = golden_ids[int(np.argmin(golden_rows))]
        raise ItemIndexInvalid(
            str(folder / INDEX_FILE), found=f"no item {missed!r}", expected="every item of the table"
        )
    return table


def feature_names(encoder: PartEncoder) -> tuple[str, ...]:
    """Return a part's features in the order of `given_features`: those of code columns, then those of values."""
    return tuple(feature.name for feature in (*encoder.code_features, *encoder.value_features))


def given_features(columns: Mapping[str, Column | ListColumn], names: Sequence[str], rows: int) -> NDArray[np.bool_]:
    """Return whether typed columns hold a value [N, F]: neither null, nor an empty list, nor no column at all."""
    given_NF = np.zeros((rows, len(names)), dtype=np.bool_)
    for at, name in enumerate(names):
        column = columns.get(name)
        if isinstance(column, ListColumn):
            given_NF[:, at] = np.diff(column.offsets) > 0
        elif column is not None:
            given_NF[:, at] = True if column.missing is None else ~column.missing
    return given_NF


def _array(path: Path, dtype: type[np.generic] | np.dtype[np.generic], shape: tuple[int | None, ...]) -> NDArray:  # type: ignore[type-arg]
    """Return a memory-mapped array, checked.

    Raises:
        ItemFileInvalid: the file does not read, or holds another dtype or shape.
    """
    wanted = f"{np.dtype(dtype)}[{', '.join('any' if size is None else str(size) for size in shape)}]"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as exc:
        raise ItemFileInvalid(str(path), found=" ".join(str(exc).split())[:200], expected=wanted) from exc
    fits = array.dtype == np.dtype(dtype) and array.ndim == len(shape) and array.flags.c_contiguous
    if not fits or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        raise ItemFileInvalid(str(path), found=f"{array.dtype}{list(array.shape)}", expected=wanted)
    return np.asarray(array)  # a plain view of the mapping: indexing it costs less than indexing an np.memmap


def _golden_ids(path: Path) -> tuple[str, ...]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            ids = archive[GOLDEN_IDS]
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError) as exc:
        raise ItemFileInvalid(str(path), found=f"{exc}", expected="an npz archive with ids") from exc
    if ids.dtype.kind != "U" or ids.ndim != 1 or not len(ids):
        raise ItemFileInvalid(f"{path}: ids", found=f"{ids.dtype}{list(ids.shape)}", expected="texts, at least one")
    return tuple(ids.tolist())


def _pieces(array: NDArray[np.int32]) -> Iterator[NDArray[np.int32]]:
    for at in range(0, len(array), _CHUNK):
        yield array[at : at + _CHUNK]
