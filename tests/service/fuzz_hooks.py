"""What `schemathesis.toml` adds to every generated request."""

from __future__ import annotations

from typing import Any

import schemathesis

LONG_MS = "60000"


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Make valid deadlines long: where one passes, the answer is 504 or the fallback order whatever the body holds."""
    text = str(case.headers.get("X-Request-Deadline-Ms", "")) if case.headers else ""
    if text.isascii() and text.isdecimal() and 1 <= int(text) <= 600_000:
        case.headers["X-Request-Deadline-Ms"] = LONG_MS
