"""Keys that let a caller steer a running service: one per line of a file.

The file is read at each use, so that a key can be added, and the old one taken away, without a restart. Keys are
never kept, logged or told.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path

from service.errors import SettingsInvalid

_LOG = logging.getLogger("service.admin_keys")
KEY_HEADER = "x-admin-key"
SHORTEST_KEY = 16
FILE_BYTES_LIMIT = 65536


class AdminKeys:
    """The keys of one file; without a file there are none."""

    def __init__(self, file: Path | None) -> None:
        """Read nothing yet."""
        self._file = file

    def check(self) -> None:
        """Check that the file holds keys.

        Raises:
            SettingsInvalid: it cannot be read, or a line is no key.
        """
        if self._file is not None:
            _digests(self._file)

    def holds(self, given: str | None) -> bool:
        """Return whether a caller's key is one of them; takes as long whichever it is."""
        if self._file is None or not given:
            return False
        try:
            known = _digests(self._file)
        except SettingsInvalid as exc:
            _LOG.error("no admin key is valid: %s", exc)
            return False
        mine = _digest(given)
        return sum([hmac.compare_digest(mine, key) for key in known]) > 0


def _digests(file: Path) -> list[bytes]:
    """Return the keys' digests, all of one length; see `AdminKeys.check` for errors, which never hold a key."""
    thing, expected = f"admin_keys_file {file}", f"keys of at least {SHORTEST_KEY} characters, one per line"
    try:
        with file.open("rb") as opened:
            text = opened.read(FILE_BYTES_LIMIT).decode()
    except OSError as exc:
        raise SettingsInvalid(thing, found=exc.strerror, expected=expected) from exc
    except UnicodeDecodeError:
        raise SettingsInvalid(thing, found="bytes that are no text", expected=expected) from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    keys = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not keys:
        raise SettingsInvalid(thing, found="no key", expected=expected)
    for number, key in keys:
        if len(key) < SHORTEST_KEY:
            raise SettingsInvalid(thing, found=f"a shorter one in line {number}", expected=expected)
    return [_digest(key) for _, key in keys]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
