"""Where the fusion config comes from: the version that is pinned, else the files on disk; and its history.

Content must be the same at two looks before it is believed: a file that is being written is not half read. Knows
nothing of models.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from fusion.document import read_files
from fusion.errors import FusionError, HistoryError
from fusion.history import History
from service.metrics import Metrics

_LOG = logging.getLogger("service.config_source")
UNREADABLE = "unreadable"
SETTLE_SECONDS = 0.05
"""How long new content must stay the same before it is believed."""
SETTLE_LOOKS = 6
"""How often content that keeps changing is looked at again at once, before it is left for the next time."""


@dataclass(frozen=True)
class Reading:
    """One look at the config.

    Attributes:
        content: what changes whenever the content does.
        files: name → bytes; None where they cannot be read.
        complaint: why they cannot be read.
    """

    content: str
    files: dict[str, bytes] | None = None
    complaint: FusionError | None = None


class ConfigSource:
    """Reads what should serve, and notes what serves."""

    def __init__(self, path: Path, state: Path | None, metrics: Metrics) -> None:
        """Read the config at `path`, history and pin in the folder `state` (None: there are none)."""
        self.history = None if state is None else History(state)
        self._path = path
        self._metrics = metrics

    def read(self, known: str = "") -> Reading:
        """Return what should serve now; files are left out where the content is the known one."""
        try:
            pinned = self.history.pinned() if self.history else None
            if self.history and pinned:
                return self._read_pinned(self.history, pinned, known)
            files = read_files(self._path)
        except FusionError as exc:
            return Reading(UNREADABLE, complaint=exc)
        return Reading(content_of(files), files)

    def read_settled(self, known: str, stop: threading.Event) -> Reading | None:
        """Return what should serve now if it is not the known content and does not change for a moment."""
        reading = self.read(known)
        for _ in range(SETTLE_LOOKS):
            if reading.content == known or stop.wait(SETTLE_SECONDS):
                return None
            again = self.read(known)
            if again.content == reading.content:
                return again
            reading = again
        return None

    def record(self, files: dict[str, bytes], previous: str | None) -> None:
        """Note in the history that a config serves; serving goes on where that fails."""
        if self.history is None:
            return
        try:
            self.history.record(files, previous=previous)
        except HistoryError as exc:
            self._metrics.load_failures.labels("history", type(exc).__name__).inc()
            _LOG.error("the config serves, but its history cannot be kept: %s", exc)

    @staticmethod
    def _read_pinned(history: History, pinned: str, known: str) -> Reading:
        content = f"pinned {pinned}"
        if content == known:
            return Reading(content)
        try:
            return Reading(content, history.files_of(pinned))
        except HistoryError as exc:
            return Reading(content, complaint=exc)


def content_of(files: dict[str, bytes]) -> str:
    """Return a digest of names and bytes."""
    digest = hashlib.sha256()
    for name, data in files.items():
        digest.update(f"{name} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()
