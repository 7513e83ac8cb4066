"""The compiled loop of `compiled.pyx`, or None where it was not built: torch then does the same."""

from __future__ import annotations

__all__ = ["compiled"]

try:
    from training import compiled
except ImportError:
    compiled = None  # type: ignore[assignment]
