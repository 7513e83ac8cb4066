"""Arrow streams of a megabyte or less that name a gigabyte: many things in them point to one."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import pyarrow as pa

from service.wire.flatbuffer import child, field, u32, vector

END = b"\xff\xff\xff\xff\0\0\0\0"
LONG = b"x" * 500_000
Place = tuple[str, Callable[[], int] | int]
"""A field of a table: how it is packed, and its number or what writes the thing that it points to."""


class Flat:
    """A flatbuffer, written from its root on, so that everything is pointed to from before it."""

    def __init__(self) -> None:
        self.data = bytearray(4)

    def point(self, at: int, there: int) -> None:
        struct.pack_into("<I", self.data, at, there - at)

    def aligned(self) -> int:
        self.data += bytes(-len(self.data) % 8)
        return len(self.data)

    def table(self, places: dict[int, Place]) -> int:
        """Write a table, and then what it points to."""
        begin, count = self.aligned(), max(places) + 1
        self.data += struct.pack(f"<{2 + count}H", 4 + 2 * count, 8 + 8 * count, *(
            8 + 8 * index if index in places else 0 for index in range(count)
        ))  # fmt: skip
        table = self.aligned()
        self.data += struct.pack("<i", table - begin) + bytes(4 + 8 * count)
        for index, (code, what) in places.items():
            at = table + 8 + 8 * index
            if callable(what):
                self.point(at, what())
            else:
                struct.pack_into(f"<{code}", self.data, at, what)
        return table

    def text(self, text: bytes) -> int:
        begin = self.aligned()
        self.data += struct.pack("<I", len(text)) + text + b"\0"
        return begin

    def again(self, count: int, write: Callable[[], int]) -> int:
        """Write a vector of one thing, so many times."""
        begin = self.aligned()
        self.data += struct.pack("<I", count) + bytes(4 * count)
        there = write() if count else 0
        for at in range(begin + 4, begin + 4 + 4 * count, 4):
            self.point(at, there)
        return begin

    def message(self, kind: int, write: Callable[[], int], more: dict[int, Place] | None = None) -> bytes:
        self.point(0, self.table({0: ("h", 4), 1: ("B", kind), 2: ("I", write), 3: ("q", 0), **(more or {})}))
        size = self.aligned()
        return b"\xff\xff\xff\xff" + struct.pack("<i", size) + bytes(self.data)


def pair(flat: Flat) -> int:
    return flat.table({0: ("I", lambda: flat.text(b"k")), 1: ("I", lambda: flat.text(LONG))})


def column(flat: Flat, name: bytes, kind: int, type_: dict[int, Place], more: dict[int, Place] | None = None) -> int:
    return flat.table({
        0: ("I", lambda: flat.text(name)), 2: ("B", kind), 3: ("I", lambda: flat.table(type_)),
        5: ("I", lambda: flat.again(0, int)), **(more or {}),
    })  # fmt: skip


def of_schema(places: Callable[[Flat], dict[int, Place]]) -> bytes:
    flat = Flat()
    return flat.message(1, lambda: flat.table(places(flat))) + END


def no_columns(flat: Flat) -> Place:
    return ("I", lambda: flat.again(0, int))


UTF8: tuple[int, dict[int, Place]] = (5, {0: ("i", 0)})


def metadata_many_times() -> bytes:
    return of_schema(lambda flat: {1: no_columns(flat), 2: ("I", lambda: flat.again(9000, lambda: pair(flat)))})


def metadata_of_a_message_many_times() -> bytes:
    flat = Flat()
    more: dict[int, Place] = {4: ("I", lambda: flat.again(9000, lambda: pair(flat)))}
    return flat.message(1, lambda: flat.table({1: no_columns(flat)}), more) + END


def columns_many_times(name: bytes = LONG) -> bytes:
    return of_schema(lambda flat: {1: ("I", lambda: flat.again(9000, lambda: column(flat, name, *UTF8)))})


def metadata_of_a_column_many_times() -> bytes:
    def one(flat: Flat) -> int:
        return column(flat, b"id", *UTF8, {6: ("I", lambda: flat.again(9000, lambda: pair(flat)))})

    return of_schema(lambda flat: {1: ("I", lambda: flat.again(1, lambda: one(flat)))})


def time_zones_many_times() -> bytes:
    def one(flat: Flat) -> int:
        return column(flat, b"id", 10, {0: ("h", 0), 1: ("I", lambda: flat.text(LONG))})

    return of_schema(lambda flat: {1: ("I", lambda: flat.again(9000, lambda: one(flat)))})


def columns_in_columns(depth: int, each: int) -> bytes:
    def at(flat: Flat, level: int) -> int:
        children: dict[int, Place] = {5: ("I", lambda: flat.again(each if level else 0, lambda: at(flat, level - 1)))}
        return column(flat, b"id", 13, {0: ("i", 0)}, children)  # a struct

    return of_schema(lambda flat: {1: ("I", lambda: flat.again(1, lambda: at(flat, depth)))})


def one_text_for_many_columns(columns: int = 2000) -> bytes:
    """Columns of one text each, all of whose buffers are the same."""
    table = pa.table({"id": ["a"]} | {f"features.f{at}": ["x"] for at in range(columns)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body = bytearray(sink.getvalue().to_pybytes())
    start = 8 + u32(body, 4)
    begin, end = start + 8, start + 8 + u32(body, start + 4)
    head = memoryview(body)[begin:end]
    message = u32(head, 0)
    size_at = field(head, message, 3)
    (size,) = struct.unpack_from("<q", head, size_at)
    buffers, _ = vector(head, child(head, message, 2), 1 + 1)
    for at in range(buffers + 48, buffers + 48 * (columns + 1), 48):
        struct.pack_into("<6q", head, at, 0, 0, size, 8, size + 8, len(LONG))
    struct.pack_into("<q", head, size_at, size + 8 + len(LONG))
    return bytes(body[:end]) + bytes(body[end : end + size]) + struct.pack("<ii", 0, len(LONG)) + LONG + END


def dictionaries(values: pa.Array, indices: Sequence[int]) -> bytes:
    ids = pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), values)
    table = pa.table({"id": ids})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


BOMBS = {
    "metadata many times": metadata_many_times(),
    "a message's metadata many times": metadata_of_a_message_many_times(),
    "a column's metadata many times": metadata_of_a_column_many_times(),
    "a column many times": columns_many_times(),
    "time zones many times": time_zones_many_times(),
    "columns in columns": columns_in_columns(14, 2),
    "columns in columns, deep": columns_in_columns(90, 1),
    "one text for many columns": one_text_for_many_columns(),
    "one long text for all rows": dictionaries(pa.array([LONG.decode()]), [0] * 1900),
    "a dictionary of a billion nulls": dictionaries(pa.nulls(10**9), [0]),
}
