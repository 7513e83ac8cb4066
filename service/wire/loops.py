"""The compiled loops of `compiled.pyx`, or None where they were not built.

`service.worker` says so when it starts; what they do is then done in Python, with the same results.
"""

from __future__ import annotations

__all__ = ["compiled"]

try:
    from service.wire import compiled
except ImportError:
    compiled = None  # type: ignore[assignment]
