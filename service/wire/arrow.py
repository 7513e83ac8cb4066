"""Rank requests as Apache Arrow IPC streams: columns arrive as they are computed on.

A request is a stream whose schema metadata holds the rest of the request as JSON under `dlen` (a `RankHead`), and
whose columns are `id`, `group`, `vector` (lists of floats) and `features.<name>`. Integers, floats, strings, lists of
integers or strings, and dictionaries of them are read; null is missing. Buffers must not be compressed (a
Content-Encoding may be, with a limit on what it inflates to), and rows are counted before a batch is read.

Compiled loops (`compiled_arrow.pyx`) read streams of one batch of numbers and strings, in a third of the time that
pyarrow takes; pyarrow reads all others, all where they were not built, and says what is wrong. Both give the same.
"""

from __future__ import annotations

import struct
from typing import Any, cast

import msgspec
import numpy as np
import pyarrow as pa

from bundle.columns import Column, ListColumn
from service.errors import BodyMalformed
from service.wire import loops
from service.wire.arrow_messages import check_messages
from service.wire.document import RankHead, decode, request_of
from service.wire.request import LONGEST_TEXT, RankRequest, RawColumn, check_length

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
HEAD = b"dlen"
PREFIX = "features."
_MOST_SHARED = 4
"""Times a body's size that its columns may take together: some columns may share a dictionary, but not one text all."""
_HEAD_DECODER = msgspec.json.Decoder(RankHead)


def parse(body: bytes, max_candidates: int, request_id: str, typed_json: object = None) -> RankRequest:
    """Return the request in an Arrow stream; `typed_json` is for JSON.

    Raises:
        BodyMalformed, TooManyCandidates, DuplicateCandidate: see `service.errors`.
    """
    if (read := _read(body, max_candidates)) is not None:
        head, read_ids, items, read_groups = read
        return request_of(head, read_ids, items, read_groups, max_candidates=max_candidates, request_id=request_id)
    try:
        check_messages(body, max_candidates)
        with pa.ipc.open_stream(body) as reader:
            head = _head((reader.schema.metadata or {}).get(HEAD))
            batches = list(reader)
        for batch in batches:
            batch.validate(full=True)
        columns = _by_name(
            batches[0] if len(batches) == 1 else pa.Table.from_batches(batches, reader.schema), len(body)
        )
    except (pa.ArrowException, OSError, struct.error, UnicodeDecodeError) as exc:
        raise BodyMalformed("body", found=_line(exc), expected="an Arrow IPC stream") from exc
    ids = _texts("id", columns.pop("id", None))
    groups = columns.pop("group", None)
    vectors = columns.pop("vector", None)
    items = {}
    for name, values in columns.items():
        if not name.startswith(PREFIX):
            raise BodyMalformed(
                f"column {name!r}", found="an unknown name", expected="id, group, vector or features.<name>"
            )
        items[name[len(PREFIX) :]] = _column(name, values)
    return request_of(
        head,
        _required(ids),
        items,
        None if groups is None else _texts("group", groups),
        None if vectors is None else _vectors(vectors),
        max_candidates=max_candidates,
        request_id=request_id,
    )


def _head(metadata: bytes | None) -> RankHead:
    return decode(metadata or b"{}", _HEAD_DECODER, "schema metadata 'dlen'")


def _read(
    body: bytes, max_candidates: int
) -> tuple[RankHead, list[str], dict[str, RawColumn], list[str | None] | None] | None:
    """Return a request's head, and candidates' ids, features and groups, if compiled loops can read all of it.

    Raises:
        BodyMalformed: of the head.
    """
    if loops.arrow is None or (read := loops.arrow.read_stream(body, HEAD, max_candidates)) is None:
        return None
    metadata, given = read
    names: dict[str, list[str | None]] = {}
    items: dict[str, RawColumn] = {}
    for name, values, missing_N, longest in given:
        if name.startswith(PREFIX) and name[len(PREFIX) :] not in items:
            if isinstance(values, list):
                values = np.array(values if missing_N is None else [text or "" for text in values], dtype=object)
            items[name[len(PREFIX) :]] = Column(values, missing_N)
        elif name in ("id", "group") and name not in names and isinstance(values, list) and longest <= LONGEST_TEXT:
            names[name] = values
            if name == "id" and missing_N is not None:
                return None
        else:
            return None
    if "id" not in names:
        return None
    return _head(metadata), cast(list[str], names["id"]), items, names.get("group")


def _vectors(values: pa.Array) -> list[list[float] | None]:
    """Return one list of floats per row, None where it is null."""
    is_list = pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type)
    if not is_list or not pa.types.is_floating(values.type.value_type) or values.flatten().null_count:
        raise BodyMalformed("column 'vector'", found=str(values.type), expected="lists of floats without nulls")
    rows: list[list[float] | None] = values.to_pylist()
    return rows


def _by_name(whole: pa.Table | pa.RecordBatch, size_bytes: int) -> dict[str, Any]:
    """Return the columns by name, as arrays; two of one name are refused."""
    columns: dict[str, Any] = {}
    for name, values in zip(whole.schema.names, whole.columns, strict=True):
        if name in columns:
            raise BodyMalformed(f"column {name[:100]!r}", found="the name again", expected="it once")
        if isinstance(values, pa.ChunkedArray):
            values = pa.concat_arrays([pa.array([], values.type), *values.chunks])
        columns[name] = values
    if sum(values.nbytes for values in columns.values()) > _MOST_SHARED * size_bytes:
        raise BodyMalformed("body", found="columns that share their bytes", expected="bytes for each")
    if "id" not in columns:
        raise BodyMalformed("column 'id'", found="nothing", expected="the candidates' ids")
    return columns


def _texts(name: str, values: Any) -> list[str | None]:
    if pa.types.is_dictionary(values.type):  # decoded here, each of its values would be written out for each row
        distinct = _texts(name, values.dictionary)
        return [None if at is None else distinct[at] for at in values.indices.to_pylist()]
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise BodyMalformed(f"column {name!r}", found=str(values.type), expected="string")
    texts: list[str | None] = values.to_pylist()
    if len(texts) and _most_bytes(values) > LONGEST_TEXT:
        for text in texts:
            check_length(f"column {name!r}", text or "")
    return texts


def _most_bytes(texts: Any) -> int:
    """Return how many bytes of UTF-8 the longest of some texts has."""
    kind = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    offsets = np.frombuffer(texts.buffers()[1], kind, texts.offset + len(texts) + 1)  # bytes may follow
    return int(np.diff(offsets[texts.offset :]).max())


def _required(ids: list[str | None]) -> list[str]:
    if None in ids:
        raise BodyMalformed(f"candidates[{ids.index(None)}].id", found="null", expected="a string")
    return cast(list[str], ids)


def _column(name: str, values: Any) -> Column | ListColumn:
    """Return an Arrow array as a typed column.

    Raises:
        BodyMalformed: a type that no feature has.
    """
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        items = values.flatten()  # leaves out what null lists hide
        lengths = values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        if items.null_count:
            raise BodyMalformed(f"column {name!r}", found="null in a list", expected="values")
        column = _column(name, items)
        if isinstance(column, ListColumn):
            raise BodyMalformed(f"column {name!r}", found="lists of lists", expected="lists of values")
        return ListColumn(column, offsets)
    missing = values.is_null().to_numpy(zero_copy_only=False) if values.null_count else None
    if pa.types.is_dictionary(kind):
        distinct = _column(name, values.dictionary)
        if not isinstance(distinct, Column) or distinct.missing is not None or not len(distinct):
            if len(values) == values.null_count:
                return _column(name, pa.nulls(len(values), pa.int64()))
            raise BodyMalformed(f"column {name!r}", found="a dictionary of such values", expected="one of plain values")
        return Column(distinct.values, missing, values.indices.fill_null(0).to_numpy(zero_copy_only=False))
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return Column(_filled(values, 0).astype(np.int64, copy=False), missing)
    if pa.types.is_floating(kind):
        return Column(_filled(values, 0.0).astype(np.float64, copy=False), missing)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return Column(np.array(values.fill_null("").to_pylist(), dtype=object), missing)
    raise BodyMalformed(f"column {name!r}", found=str(kind), expected="integers, floats, strings or lists of them")


def _filled(values: pa.Array, with_what: float) -> Any:
    """Return an array's numbers, nulls replaced."""
    return (values.fill_null(with_what) if values.null_count else values).to_numpy(zero_copy_only=False)


def _line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:200]
