"""Keys that callers show: one per line of a file, several at a time, so that they can be rotated.

A file is looked at on each use and read again when it has changed, so that a key can be added, and the old one taken
away, without a restart. Keys are kept as digests only, and never logged or told.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from pathlib import Path

from service.errors import SettingsInvalid

_LOG = logging.getLogger("service.keys")
ADMIN_KEY_HEADER = "x-admin-key"
SHORTEST_KEY = 16
FILE_BYTES_LIMIT = 65536
FRESH_SECONDS = 2.0
"""How long a file is read at each use after it changed: a second change may leave time and size the same."""


class Keys:
    """The keys of one file; without a file there are none."""

    def __init__(self, setting: str, file: Path | None, *, keep_last_good: bool = False) -> None:
        """Read nothing yet; a file that turns bad leaves the last good keys valid, or none."""
        self._setting = setting
        self._file = file
        self._keep = keep_last_good
        self._stamp: tuple[int, ...] | None = None
        self._known: list[bytes] = []

    def check(self) -> None:
        """Check that the file holds keys.

        Raises:
            SettingsInvalid: it cannot be read, or a line is no key.
        """
        if self._file is not None:
            self._known = self._read(self._file)

    def holds(self, given: str | None) -> bool:
        """Return whether a caller's key is one of them; takes as long whichever it is."""
        if self._file is None or not given:
            return False
        self._refresh(self._file)
        mine = _digest(given)
        return sum([hmac.compare_digest(mine, key) for key in self._known]) > 0

    def _refresh(self, file: Path) -> None:
        """Read the file again if it has changed."""
        try:
            stat = file.stat()
            stamp: tuple[int, ...] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            fresh = abs(time.time() - stat.st_mtime) < FRESH_SECONDS
        except OSError:
            stamp, fresh = (), False
        if stamp == self._stamp and not fresh:
            return
        try:
            self._known = self._read(file)
        except SettingsInvalid as exc:
            if not self._keep:
                self._known = []
            if stamp != self._stamp:
                _LOG.error("%s: %s", "the last good keys stay valid" if self._keep else "no key is valid", exc)
        self._stamp = stamp

    def _read(self, file: Path) -> list[bytes]:
        """Return the keys' digests, all of one length; see `check` for errors, which never hold a key."""
        return [_digest(key) for key in read_keys(f"{self._setting} {file}", file)]


def read_keys(thing: str, file: Path) -> list[str]:
    """Return the keys in a file; lines with # are comments.

    Raises:
        SettingsInvalid: it cannot be read, or a line is no key; tells the line, never what it holds.
    """
    expected = f"keys of at least {SHORTEST_KEY} printable characters without spaces, one per line"
    try:
        with file.open("rb") as opened:
            text = opened.read(FILE_BYTES_LIMIT).decode("ascii")
    except OSError as exc:
        raise SettingsInvalid(thing, found=exc.strerror, expected=expected) from exc
    except UnicodeDecodeError:
        raise SettingsInvalid(thing, found="bytes that are no ASCII text", expected=expected) from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    keys = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not keys:
        raise SettingsInvalid(thing, found="no key", expected=expected)
    for number, key in keys:
        if len(key) < SHORTEST_KEY:
            raise SettingsInvalid(thing, found=f"a shorter one in line {number}", expected=expected)
        if not key.isprintable() or " " in key:
            raise SettingsInvalid(thing, found=f"another character in line {number}", expected=expected)
    return [key for _, key in keys]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
