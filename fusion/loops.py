"""The compiled loop of `compiled.pyx`, or None where it was not built: numpy then does the same."""

from __future__ import annotations

__all__ = ["compiled"]

try:
    from fusion import compiled
except ImportError:
    compiled = None  # type: ignore[assignment]
