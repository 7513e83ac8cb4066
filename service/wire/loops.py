"""The compiled loops of `compiled_json.pyx` and `compiled_arrow.pyx`, each None where it was not built.

`service.worker` says so when it starts; what they do is then done in Python, with the same results.
"""

from __future__ import annotations

__all__ = ["arrow", "json"]

try:
    from service.wire import compiled_json as json
except ImportError:
    json = None  # type: ignore[assignment]
try:
    from service.wire import compiled_arrow as arrow
except ImportError:
    arrow = None  # type: ignore[assignment]
