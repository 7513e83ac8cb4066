"""An answer as an Arrow IPC stream: `id`, `score`, `p_up`, `p_joint.<task>`, `p.<task>`, and `explanation` as JSON text
where asked; its metadata holds the head of the JSON answer under `dlen`.

pyarrow writes one answer's messages for each set of columns. All others differ from it in a few numbers, which are put
in their places, and in the bytes that follow: in half of the time that pyarrow takes for each, or less.

Legend: K candidates returned, C columns of probabilities.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from service.wire import loops
from service.wire.answer import head_of, probability_columns
from service.wire.arrow import HEAD
from service.wire.flatbuffer import child, field, u32, vector

if TYPE_CHECKING:
    from service.ranker import Ranking

_ALIGNED = 8
"""Bytes to whose multiples buffers and messages are filled up."""
_CONTINUATION = b"\xff\xff\xff\xff"
_END_OF_STREAM = _CONTINUATION + bytes(4)
_FILL = [bytes(-size % _ALIGNED) for size in range(_ALIGNED)]


def arrow_answer(ranking: Ranking) -> bytes:
    """Return an answer as an Arrow IPC stream."""
    predicted, explanation, order_K = ranking.predicted, ranking.explanation, ranking.ranked.order_K
    tasks = ranking.snapshot.model.manifest.task_names if predicted is not None else ()
    latent = predicted is not None and predicted.p_up_N is not None
    explained = None
    if explanation is not None:
        explained = [orjson.dumps(item) for item in explanation.items(order_K.tolist())]
    written = _Body()
    written.texts(*_joined(ranking.request.ids, order_K))
    written.add(ranking.ranked.score_N[order_K].tobytes())
    written.add_rows(probability_columns(ranking).T)
    if explained is not None:
        written.texts(*_one_after_another(explained))
    layout = _layout(tasks, latent, explained is not None)
    return b"".join(
        (*layout.heads(orjson.dumps(head_of(ranking)), len(order_K), written), *written.parts, _END_OF_STREAM)
    )


class _Body:
    """A batch's buffers, one after another.

    Attributes:
        parts: bytes, filled up.
        places: offset and length of each.
        size: bytes so far.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.parts: list[bytes] = []
        self.places: list[int] = []
        self.size = 0

    def texts(self, joined: bytes, offsets_K1: NDArray[np.int32]) -> None:
        """Add a column of texts, none of them missing."""
        self._none_missing()
        self._add_buffer(offsets_K1.tobytes())
        self._add_buffer(joined)

    def add(self, numbers: bytes) -> None:
        """Add a column of numbers."""
        self._none_missing()
        self._add_buffer(numbers)

    def add_rows(self, columns_CK: NDArray[np.float32]) -> None:
        """Add a column for each row."""
        columns, rows = columns_CK.shape
        filled_CK = np.zeros((columns, rows + rows % 2), np.float32)
        filled_CK[:, :rows] = columns_CK
        stride = 4 * filled_CK.shape[1]
        for place in range(self.size, self.size + columns * stride, stride) if stride else [self.size] * columns:
            self.places += (place, 0, place, 4 * rows)
        self.parts.append(filled_CK.tobytes())
        self.size += columns * stride

    def _none_missing(self) -> None:
        self.places += (self.size, 0)

    def _add_buffer(self, buffer: bytes) -> None:
        self.places += (self.size, len(buffer))
        fill = _FILL[len(buffer) % _ALIGNED]
        self.parts += (buffer, fill)
        self.size += len(buffer) + len(fill)


class _Layout:
    """The messages of all answers with the same columns, as pyarrow writes them for one of them."""

    def __init__(self, schema: pa.Schema) -> None:
        """Have pyarrow write them."""
        schema_message = schema.with_metadata({HEAD: b""}).serialize().to_pybytes()
        one = [pa.array(["a"] if pa.types.is_string(kind) else [0.5], kind) for kind in schema.types]
        batch_message = pa.RecordBatch.from_arrays(one, schema=schema).serialize().to_pybytes()
        self._schema, self._batch = _metadata_of(schema_message), _metadata_of(batch_message)
        self._columns = len(schema)

        # the metadata's value is put behind all else, where it may have any length
        root = child(self._schema, u32(self._schema, 0), 2)
        pairs, _ = vector(self._schema, root, 2)
        value = field(self._schema, pairs + u32(self._schema, pairs), 1)
        struct.pack_into("<I", self._schema, value, len(self._schema) - value)

        message = u32(self._batch, 0)
        root = child(self._batch, message, 2)
        self._body_size_at, self._rows_at = field(self._batch, message, 3), field(self._batch, root, 0)
        (self._nodes_at, nodes), (self._buffers_at, self._buffers) = (vector(self._batch, root, at) for at in (1, 2))
        assert self._body_size_at and self._rows_at and nodes == self._columns

    def heads(self, head: bytes, rows: int, body: _Body) -> tuple[bytes, ...]:
        """Return what stands before a body."""
        fill = _FILL[(4 + len(head) + 1) % _ALIGNED]
        schema_size = len(self._schema) + 4 + len(head) + 1 + len(fill)
        batch = bytearray(self._batch)
        struct.pack_into("<q", batch, self._body_size_at, body.size)
        struct.pack_into("<q", batch, self._rows_at, rows)
        struct.pack_into(f"<{2 * self._columns}q", batch, self._nodes_at, *(rows, 0) * self._columns)
        struct.pack_into(f"<{2 * self._buffers}q", batch, self._buffers_at, *body.places)
        return (
            _CONTINUATION, struct.pack("<I", schema_size), bytes(self._schema),
            struct.pack("<I", len(head)), head, b"\0", fill,
            _CONTINUATION, struct.pack("<I", len(batch)), bytes(batch),
        )  # fmt: skip


def _metadata_of(message: bytes) -> bytearray:
    """Return the flatbuffer of a message."""
    return bytearray(message[8 : 8 + u32(message, 4)])


@lru_cache(maxsize=64)
def _layout(tasks: tuple[str, ...], latent: bool, explained: bool) -> _Layout:
    """Return the layout of answers; no tasks where there are no probabilities."""
    names = [f"p.{task}" for task in tasks]
    if latent:
        names = ["p_up", *(f"p_joint.{task}" for task in tasks), *names]
    explanation = [("explanation", pa.string())] if explained else []
    return _Layout(
        pa.schema(
            [("id", pa.string()), ("score", pa.float64()), *((name, pa.float32()) for name in names), *explanation]
        )
    )


def _joined(ids: Sequence[str], order_K: NDArray[np.intp]) -> tuple[bytes, NDArray[np.int32]]:
    """Return some ids, in an order, as UTF-8 one after another, and where each begins and the last one ends [K + 1]."""
    joined = None
    if loops.arrow is not None:
        joined = loops.arrow.join_texts(list(ids), np.ascontiguousarray(order_K))
    if joined is None:
        joined = _one_after_another([ids[row].encode() for row in order_K.tolist()])
    return joined


def _one_after_another(texts: list[bytes]) -> tuple[bytes, NDArray[np.int32]]:
    """Return some texts joined, and where each begins and the last one ends [K + 1]."""
    offsets_K1 = np.zeros(len(texts) + 1, np.int32)
    np.cumsum([len(text) for text in texts], out=offsets_K1[1:])
    return b"".join(texts), offsets_K1
