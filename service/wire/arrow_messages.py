"""What is checked of an Arrow stream's messages before pyarrow decodes them, from their heads alone.

A head is a flatbuffer, in which many things may point to one: a few bytes then name a text of a megabyte a thousand
times, and pyarrow makes a copy for each. So what is pointed to is counted each time; it may not be more than there is.
"""

from __future__ import annotations

import struct

from service.errors import BodyMalformed, TooManyCandidates
from service.wire.flatbuffer import child, field, i64, u8, u32, vector

MAX_COLUMNS = 10_000
_CONTINUATION = 0xFFFFFFFF
_SCHEMA, _DICTIONARY_BATCH, _RECORD_BATCH = 1, 2, 3
_TIMESTAMP = 10
_DEEPEST = 64
_SMALLEST_TABLE = 8
"""Bytes of a table's distance to its list of places, and of one thing in it."""


def check_messages(body: bytes, max_candidates: int) -> None:
    """Check rows, compression and size of what a stream's messages say.

    Raises:
        BodyMalformed, TooManyCandidates: see `service.errors`.
        struct.error: it is cut or broken.
    """
    rows = at = 0
    while at < len(body):
        size = u32(body, at)
        at += 4
        if size == _CONTINUATION:
            size = u32(body, at)
            at += 4
        if size == 0:
            return
        head = memoryview(body)[at : at + size]
        message = u32(head, 0)
        kind_at, body_size_at = field(head, message, 1), field(head, message, 3)
        kind = u8(head, kind_at) if kind_at else 0
        texts = _Texts(head)
        texts.pairs(message, 4)
        if kind == _SCHEMA:
            texts.schema(child(head, message, 2))
        elif kind in (_RECORD_BATCH, _DICTIONARY_BATCH):
            batch = child(head, message, 2)
            if kind == _DICTIONARY_BATCH:
                batch = child(head, batch, 1)
            if field(head, batch, 3):
                raise BodyMalformed("body", found="compressed buffers", expected="plain ones (use Content-Encoding)")
            length_at = field(head, batch, 0)
            length = i64(head, length_at) if length_at else 0
            if kind == _DICTIONARY_BATCH:
                if not 0 <= length <= len(body):
                    raise BodyMalformed(
                        "body", found=f"a dictionary of {length} values", expected="one with its values"
                    )
            else:
                rows += length
                if length < 0 or rows > max_candidates:
                    raise TooManyCandidates("candidates", found=rows, expected=f"at most {max_candidates}")
        body_size = i64(head, body_size_at) if body_size_at else 0
        if body_size < 0:
            raise struct.error(f"a body of {body_size} bytes")
        at += size + body_size


class _Texts:
    """Counts what a head points to."""

    def __init__(self, head: memoryview) -> None:
        """Allow for as many bytes as there are."""
        self._head = head
        self._left = len(head)
        self._columns = 0

    def schema(self, table: int) -> None:
        """Count a schema's columns and metadata."""
        self.pairs(table, 2)
        self._fields(table, 1, 0)

    def pairs(self, table: int, index: int) -> None:
        """Count the metadata in a table's field."""
        for pair in self._tables(table, index):
            self._text(pair, 0)
            self._text(pair, 1)

    def _fields(self, table: int, index: int, depth: int) -> None:
        if depth > _DEEPEST:
            raise BodyMalformed("body", found="columns in columns in columns …", expected=f"at most {_DEEPEST} levels")
        for column in self._tables(table, index):
            self._columns += 1
            if self._columns > MAX_COLUMNS:
                raise BodyMalformed("columns", found="more", expected=f"at most {MAX_COLUMNS}")
            self._text(column, 0)
            self.pairs(column, 6)
            kind_at = field(self._head, column, 2)
            if kind_at and u8(self._head, kind_at) == _TIMESTAMP:
                self._text(child(self._head, column, 3), 1)
            self._fields(column, 5, depth + 1)

    def _tables(self, table: int, index: int) -> list[int]:
        """Return where the tables of a vector stand."""
        begin, count = vector(self._head, table, index)
        self._spend(count * _SMALLEST_TABLE)
        return [at + u32(self._head, at) for at in range(begin, begin + 4 * count, 4)]

    def _text(self, table: int, index: int) -> None:
        if field(self._head, table, index):
            self._spend(u32(self._head, child(self._head, table, index)))

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise BodyMalformed("body", found="names or metadata that share their bytes", expected="bytes for each")
