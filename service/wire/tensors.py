"""Tensors of the Open Inference Protocol v2, JSON or binary → columns of one dimension.

Knows nothing of what the tensors mean.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct, field
from numpy.typing import NDArray

from bundle.columns import Column
from service.errors import BodyMalformed

MAX_INPUTS = 10_000
_NUMBERS: dict[str, np.dtype[Any]] = {
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (32, 64)},
}
Size = Annotated[int, Meta(ge=0)]


class InferInput(Struct, forbid_unknown_fields=True, frozen=True):
    """One input tensor; its data stands here or behind the JSON."""

    name: str
    shape: list[Size]
    datatype: str
    parameters: dict[str, Any] = field(default_factory=dict)
    data: list[Any] | None = None


def read_tensors(inputs: list[InferInput], binary: memoryview) -> dict[str, Column]:
    """Return input tensors by name, all of one dimension.

    Raises:
        BodyMalformed: names the input.
    """
    if len(inputs) > MAX_INPUTS:
        raise BodyMalformed("$.inputs", found=len(inputs), expected=f"at most {MAX_INPUTS}")
    tensors: dict[str, Column] = {}
    at = 0
    for given in inputs:
        where = f"input {given.name[:100]!r}"
        if given.name in tensors:
            raise BodyMalformed(where, found="the name again", expected="it once")
        if len(given.shape) != 1:
            raise BodyMalformed(where, found=f"shape {given.shape[:8]}", expected="one dimension")
        size = given.parameters.get("binary_data_size")
        if size is None:
            tensors[given.name] = Column(_from_json(where, given))
            continue
        if given.data is not None or type(size) is not int or not 0 <= size <= len(binary) - at:
            raise BodyMalformed(where, found=f"binary_data_size {size!r}", expected=f"at most {len(binary) - at} left")
        tensors[given.name] = Column(_from_binary(where, given, binary[at : at + size]))
        at += size
    if at != len(binary):
        raise BodyMalformed("body", found=f"{len(binary) - at} bytes more", expected="only the tensors")
    return tensors


def _from_json(where: str, given: InferInput) -> NDArray[Any]:
    if given.data is None or len(given.data) != given.shape[0]:
        found = "no data" if given.data is None else f"{len(given.data)} values"
        raise BodyMalformed(where, found=found, expected=f"{given.shape[0]}, as its shape says")
    if given.datatype == "BYTES":
        allowed: set[type] = {str}
        dtype: Any = object
    else:
        dtype = _dtype(where, given.datatype)
        allowed = {int} if dtype.kind in "iu" else {int, float}
    if not set(map(type, given.data)) <= allowed:
        raise BodyMalformed(where, found="values of another type", expected=given.datatype)
    try:
        array = np.array(given.data, dtype=dtype)
    except OverflowError as exc:
        raise BodyMalformed(where, found="a number beyond its type", expected=given.datatype) from exc
    return _widened(array)


def _from_binary(where: str, given: InferInput, data: memoryview) -> NDArray[Any]:
    count = given.shape[0]
    if given.datatype == "BYTES":
        return np.array(_split_bytes(where, data, count), dtype=object)
    dtype = _dtype(where, given.datatype)
    if len(data) != count * dtype.itemsize:
        raise BodyMalformed(where, found=f"{len(data)} bytes", expected=f"{count * dtype.itemsize}")
    return _widened(np.frombuffer(data, dtype))


def _split_bytes(where: str, data: memoryview, count: int) -> list[str]:
    texts: list[str] = []
    at = 0
    try:
        while at < len(data):
            size = int.from_bytes(data[at : at + 4], "little")
            if at + 4 + size > len(data):
                raise BodyMalformed(where, found="a text that is cut off", expected="length and bytes of each")
            texts.append(str(data[at + 4 : at + 4 + size], "utf-8"))
            at += 4 + size
    except UnicodeDecodeError as exc:
        raise BodyMalformed(where, found="bytes that are not UTF-8", expected="UTF-8") from exc
    if len(texts) != count:
        raise BodyMalformed(where, found=f"{len(texts)} values", expected=f"{count}, as its shape says")
    return texts


def _dtype(where: str, datatype: str) -> np.dtype[Any]:
    if datatype not in _NUMBERS:
        expected = f"BYTES or one of {', '.join(_NUMBERS)}"
        raise BodyMalformed(where, found=f"datatype {datatype[:20]!r}", expected=expected)
    return _NUMBERS[datatype]


def _widened(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype({"i": np.int64, "u": np.int64, "f": np.float64}.get(array.dtype.kind, array.dtype))
