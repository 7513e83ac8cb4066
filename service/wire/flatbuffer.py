"""Where things stand in a flatbuffer, which is what the heads of Arrow's messages are.

A table begins with the distance back to its list of fields' places; texts, vectors and tables are pointed to from where
they are used. https://flatbuffers.dev/internals

All raise struct.error where the bytes that they read are not there.
"""

from __future__ import annotations

import struct

Bytes = bytes | bytearray | memoryview


def u32(data: Bytes, at: int) -> int:
    """Return an unsigned integer of four bytes."""
    return int(struct.unpack_from("<I", data, at)[0])


def u8(data: Bytes, at: int) -> int:
    """Return a byte."""
    return int(struct.unpack_from("<B", data, at)[0])


def i64(data: Bytes, at: int) -> int:
    """Return an integer of eight bytes."""
    return int(struct.unpack_from("<q", data, at)[0])


def field(data: Bytes, table: int, index: int) -> int:
    """Return where a table's field stands, or 0 where it has none."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, vtable)[0]
    if 4 + 2 * index >= size:
        return 0
    offset = struct.unpack_from("<H", data, vtable + 4 + 2 * index)[0]
    return int(table + offset) if offset else 0


def child(data: Bytes, table: int, index: int) -> int:
    """Return where what a table's field points to stands."""
    at = field(data, table, index)
    if not at:
        raise struct.error(f"field {index} is absent")
    return at + u32(data, at)


def vector(data: Bytes, table: int, index: int) -> tuple[int, int]:
    """Return where a table's vector begins, and how many elements it has; none where it has no vector."""
    if not field(data, table, index):
        return 0, 0
    at = child(data, table, index)
    return at + 4, u32(data, at)
