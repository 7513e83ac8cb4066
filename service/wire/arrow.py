"""Apache Arrow IPC streams: columns arrive as they are computed on.

A request is a stream whose schema metadata holds the rest of the request as JSON under `dlen` (a `RankHead`), and
whose columns are `id`, `group`, `vector` (lists of floats) and `features.<name>`. Integers, floats, strings, lists of
integers or strings, and dictionaries of them are read; null is missing. Buffers must not be compressed (a
Content-Encoding may be, with a limit on what it inflates to), and rows are counted before a batch is read.

An answer holds `id`, `score`, `p_up`, `p_joint.<task>`, `p.<task>` and, where asked, `explanation` as JSON text;
its metadata holds the head of the JSON answer under `dlen`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from bundle.columns import Column, ListColumn
from service.errors import BodyMalformed, TooManyCandidates
from service.wire import loops
from service.wire.answer import head_of, probability_columns
from service.wire.document import RankHead, decode, request_of
from service.wire.request import LONGEST_TEXT, RankRequest, RawColumn, check_length

if TYPE_CHECKING:
    from service.ranker import Ranking

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
HEAD = b"dlen"
PREFIX = "features."
MAX_COLUMNS = 10_000
_HEAD_DECODER = msgspec.json.Decoder(RankHead)
_RECORD_BATCH, _DICTIONARY_BATCH = 3, 2
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def parse(body: bytes, max_candidates: int, request_id: str, typed_json: object = None) -> RankRequest:
    """Return the request in an Arrow stream; `typed_json` is for JSON.

    Raises:
        BodyMalformed, TooManyCandidates, DuplicateCandidate: see `service.errors`.
    """
    try:
        _check_messages(body, max_candidates)
        with pa.ipc.open_stream(body) as reader:
            head = decode((reader.schema.metadata or {}).get(HEAD, b"{}"), _HEAD_DECODER, "schema metadata 'dlen'")
            batches = list(reader)
        for batch in batches:
            batch.validate(full=True)
        columns = _by_name(batches[0] if len(batches) == 1 else pa.Table.from_batches(batches, reader.schema))
    except (pa.ArrowException, OSError, struct.error, UnicodeDecodeError) as exc:
        raise BodyMalformed("body", found=_line(exc), expected="an Arrow IPC stream") from exc
    ids = _texts("id", columns.pop("id", None))
    groups = columns.pop("group", None)
    vectors = columns.pop("vector", None)
    items: dict[str, RawColumn] = {}
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


def _vectors(values: pa.Array) -> list[list[float] | None]:
    """Return one list of floats per row, None where it is null."""
    is_list = pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type)
    if not is_list or not pa.types.is_floating(values.type.value_type) or values.flatten().null_count:
        raise BodyMalformed("column 'vector'", found=str(values.type), expected="lists of floats without nulls")
    rows: list[list[float] | None] = values.to_pylist()
    return rows


def arrow_answer(ranking: Ranking) -> bytes:
    """Return an answer as an Arrow IPC stream."""
    order_K, predicted = ranking.ranked.order_K, ranking.predicted
    tasks, latent = ranking.snapshot.model.manifest.task_names, False
    arrays = [_joined(ranking.request.ids, order_K), pa.array(ranking.ranked.score_N[order_K])]
    if predicted is not None:
        latent = predicted.p_up_N is not None
        arrays += map(pa.array, np.ascontiguousarray(probability_columns(ranking).T))
    if ranking.explanation is not None:
        items = ranking.explanation.items(order_K.tolist())
        arrays.append(pa.array([orjson.dumps(item).decode() for item in items], pa.string()))
    schema = _answer_schema(tasks if predicted is not None else (), latent, ranking.explanation is not None)
    schema = schema.with_metadata({HEAD: orjson.dumps(head_of(ranking))})
    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
    # what a stream writer writes, in a third of its time
    return b"".join((memoryview(schema.serialize()), memoryview(batch.serialize()), _END_OF_STREAM))


@lru_cache(maxsize=64)
def _answer_schema(tasks: tuple[str, ...], latent: bool, explained: bool) -> pa.Schema:
    """Return an answer's columns; no tasks where there are no probabilities."""
    names = [f"p.{task}" for task in tasks]
    if latent:
        names = ["p_up", *(f"p_joint.{task}" for task in tasks), *names]
    explanation = [("explanation", pa.string())] if explained else []
    return pa.schema(
        [("id", pa.string()), ("score", pa.float64()), *((name, pa.float32()) for name in names), *explanation]
    )


def _joined(ids: Sequence[str], order_K: NDArray[np.intp]) -> pa.Array:
    """Return some ids, in an order, as an array of strings."""
    joined = None
    if loops.compiled is not None:
        joined = loops.compiled.join_texts(list(ids), np.ascontiguousarray(order_K))
    if joined is None:
        return pa.array([ids[row] for row in order_K.tolist()], pa.string())
    text, offsets_K1 = joined
    return pa.StringArray.from_buffers(len(order_K), pa.py_buffer(offsets_K1), pa.py_buffer(text))


def _check_messages(body: bytes, max_candidates: int) -> None:
    """Check rows and compression of every batch from its header alone, before anything is decoded.

    Raises:
        BodyMalformed, TooManyCandidates: see `service.errors`.
    """
    rows = 0
    for message in pa.ipc.MessageReader.open_stream(pa.BufferReader(body)):
        metadata = memoryview(message.metadata)
        root = _u32(metadata, 0)
        kind_at = _field(metadata, root, 1)
        kind = metadata[kind_at] if kind_at else 0
        if kind not in (_RECORD_BATCH, _DICTIONARY_BATCH):
            continue
        batch = _child(metadata, root, 2)
        if kind == _DICTIONARY_BATCH:
            batch = _child(metadata, batch, 1)
        if _field(metadata, batch, 3):
            raise BodyMalformed("body", found="compressed buffers", expected="plain ones (use Content-Encoding)")
        length_at = _field(metadata, batch, 0)
        length = struct.unpack_from("<q", metadata, length_at)[0] if length_at else 0
        if kind == _RECORD_BATCH:
            rows += length
        if not length >= 0 or rows > max_candidates:
            raise TooManyCandidates("candidates", found=rows, expected=f"at most {max_candidates}")


def _u32(data: memoryview, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])


def _field(data: memoryview, table: int, index: int) -> int:
    """Return where a flatbuffer table's field stands, or 0 where it has none."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, vtable)[0]
    if 4 + 2 * index >= size:
        return 0
    offset = struct.unpack_from("<H", data, vtable + 4 + 2 * index)[0]
    return int(table + offset) if offset else 0


def _child(data: memoryview, table: int, index: int) -> int:
    at = _field(data, table, index)
    if not at:
        raise struct.error(f"field {index} is absent")
    return at + _u32(data, at)


def _by_name(whole: pa.Table | pa.RecordBatch) -> dict[str, Any]:
    """Return the columns by name, as arrays; two of one name, or too many, are refused."""
    if whole.num_columns > MAX_COLUMNS:
        raise BodyMalformed("columns", found=whole.num_columns, expected=f"at most {MAX_COLUMNS}")
    columns: dict[str, Any] = {}
    for name, values in zip(whole.schema.names, whole.columns, strict=True):
        if name in columns:
            raise BodyMalformed(f"column {name[:100]!r}", found="the name again", expected="it once")
        if isinstance(values, pa.ChunkedArray):
            values = pa.concat_arrays([pa.array([], values.type), *values.chunks])
        columns[name] = values
    if "id" not in columns:
        raise BodyMalformed("column 'id'", found="nothing", expected="the candidates' ids")
    return columns


def _texts(name: str, values: Any) -> list[str | None]:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise BodyMalformed(f"column {name!r}", found=str(values.type), expected="string")
    texts: list[str | None] = values.to_pylist()
    if len(texts) and _most_bytes(values) > LONGEST_TEXT:
        for text in texts:
            check_length(f"column {name!r}", text or "")
    return texts


def _most_bytes(texts: Any) -> int:
    """Return how many bytes of UTF-8 the longest of some texts has."""
    offsets = np.frombuffer(texts.buffers()[1], np.int64 if pa.types.is_large_string(texts.type) else np.int32)
    return int(np.diff(offsets[texts.offset : texts.offset + len(texts) + 1]).max())


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
