"""Every way in which an export can fail.

ExportError
├── ParityFailed      the graph's outputs lie too far from the network's
├── PrecisionRefused  a lower precision changes the ranking more than the gate allows
└── OutputInvalid     the output folder is not models/NAME/VERSION, or holds something already

A message gives the thing, the value found and the value expected.
"""

from __future__ import annotations


class ExportError(Exception):
    """A bundle cannot be written."""

    exit_code = 2

    def __init__(self, thing: str, *, found: object, expected: object) -> None:
        """Build the message `<thing>: got <found>, want <expected>`."""
        self.thing = thing
        self.found = found
        self.expected = expected
        super().__init__(f"{thing}: got {found}, want {expected}")


class ParityFailed(ExportError):
    """The graph's outputs lie too far from the network's."""


class PrecisionRefused(ExportError):
    """A lower precision changes the ranking more than the gate allows."""


class OutputInvalid(ExportError):
    """The output folder is not models/NAME/VERSION, or holds something already."""
