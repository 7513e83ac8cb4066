"""Operators of our own for ONNX Runtime: whole networks of bytes, mixtures with their towers, the request's share.

What they give is what the stock graph's nodes give; they are faster, as nothing between a network's layers leaves the
first-level cache. `kernels.c` computes, `operators.c` shows it to ONNX Runtime. Where the library was not built, or the
processor lacks AVX-512 VNNI, the stock graph serves (`usable`).
"""

from __future__ import annotations

from typing import Any

__all__ = ["DOMAIN", "VERSION", "instructions", "library", "register", "usable"]

DOMAIN = "dlen"
VERSION = 1
"""Of the operators. A fused graph of another version is not run: to be raised with any change that a graph can see."""

try:
    from bundle.operators import native
except ImportError:
    native = None  # type: ignore[assignment]


def instructions() -> str | None:
    """Return the instruction set that the operators use, None where they were not built."""
    return None if native is None else native.instructions()


def usable() -> bool:
    """Return whether graphs of these operators are faster here than stock ones."""
    return instructions() not in (None, "portable")


def library() -> str | None:
    """Return the path of the library, as ONNX Runtime takes it, None where it was not built."""
    return None if native is None else native.__file__


def register(options: Any) -> None:
    """Make the operators known to sessions of an ONNX Runtime SessionOptions, if they were built."""
    if (path := library()) is not None:
        options.register_custom_ops_library(path)
