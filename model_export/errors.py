"""Every way in which an export can fail.

ExportError
├── ParityFailed      the graph's outputs lie too far from the network's
├── PrecisionRefused  a lower precision changes the ranking more than the gate allows
└── OutputInvalid     the output folder is not models/NAME/VERSION, or holds something already

A message gives the thing, the value found and the value expected.
"""

from __future__ import annotations

from bundle.errors import Refused


class ExportError(Refused):
    """A bundle cannot be written."""


class ParityFailed(ExportError):
    """The graph's outputs lie too far from the network's."""


class PrecisionRefused(ExportError):
    """A lower precision changes the ranking more than the gate allows."""


class OutputInvalid(ExportError):
    """The output folder is not models/NAME/VERSION, or holds something already."""
