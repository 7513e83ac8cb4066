"""Every way in which an export can fail.

ExportError
├── ParityFailed      the graph's outputs lie too far from the network's
├── PrecisionRefused  a lower precision changes the ranking more than the gate allows
├── TableInvalid      an item table without ids or without any of the model's item features
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


class TableInvalid(ExportError):
    """An item table has no ids, or none of the model's item features."""


class OutputInvalid(ExportError):
    """The output folder is not models/NAME/VERSION, or holds something already."""
