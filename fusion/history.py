"""The last config versions that served, a pin to go back to one, and an audit line for every change.

A state folder holds `versions/<hash>.json` (the config's files as they were), `audit.jsonl` (one line per event,
only ever appended) and, while rolled back, `pin.json`. All workers and commands share the folder: versions are named
by content, so several may write the same one; every file appears whole. Knows nothing of who watches it.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fusion.document import read_files
from fusion.errors import FusionError, HistoryError
from fusion.policy import parse_config

KEPT_VERSIONS = 20
"""How many versions the folder keeps; a pinned one is kept beyond that."""
_VERSION = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredVersion:
    """A version in the history.

    Attributes:
        version: the config's content hash.
        last_active: when it last began to serve, in seconds since 1970.
    """

    version: str
    last_active: float


class History:
    """Versions, pin and audit lines in one folder."""

    def __init__(self, folder: Path) -> None:
        """Use a folder; it is made when something is first written."""
        self.folder = folder

    def read(self, path: Path) -> dict[str, bytes]:
        """Return the files to serve: the pinned version's where one is pinned, else those at `path`.

        Raises:
            HistoryError: the pin or the pinned version cannot be read.
            ConfigUnreadable: no pin, and `path` cannot be read.
        """
        pinned = self.pinned()
        return self.files_of(pinned) if pinned else read_files(path)

    def record(self, files: dict[str, bytes], *, previous: str | None = None) -> str:
        """Store a config that now serves, note it in the audit log, and return its version.

        Raises:
            ConfigError: the files are no config.
            HistoryError: the folder cannot be written.
        """
        version = parse_config(files).version
        texts = {name: data.decode() for name, data in files.items()}
        target = self._file_of(version)
        with _translated(self.folder):
            if not target.exists():
                write_aside(target, json.dumps(texts, sort_keys=True).encode())
            os.utime(target)
            self._prune(version)
        self.audit("activated", version, previous=previous)
        return version

    def versions(self) -> list[StoredVersion]:
        """Return the stored versions, the last one to become active first."""
        found = []
        for file in (self.folder / "versions").glob("*.json"):
            try:
                found.append(StoredVersion(f"sha256:{file.stem}", file.stat().st_mtime))
            except FileNotFoundError:  # another process has just dropped it
                continue
        return sorted(found, key=lambda stored: (-stored.last_active, stored.version))

    def resolve(self, prefix: str) -> str:
        """Return the one stored version that starts like this (with or without `sha256:`).

        Raises:
            HistoryError: none, or several.
        """
        wanted = prefix.removeprefix("sha256:")
        known = [stored.version for stored in self.versions()]
        matching = [version for version in known if version.removeprefix("sha256:").startswith(wanted)]
        if len(matching) != 1 or not wanted:
            short = ", ".join(version[:19] for version in known) or "none stored"
            raise HistoryError(
                "version", found=f"{prefix!r}, which {len(matching)} versions start with", expected=f"one of {short}"
            )
        return matching[0]

    def files_of(self, version: str) -> dict[str, bytes]:
        """Return the files of a stored version, checked to be that version.

        Raises:
            HistoryError: not stored, or not what its name says.
        """
        try:
            texts = json.loads(self._file_of(version).read_bytes())
            files = {name: text.encode() for name, text in texts.items()}
            found = parse_config(files).version
        except OSError as exc:
            raise HistoryError(f"version {version}", found=exc.strerror, expected="a stored version") from exc
        except (ValueError, AttributeError, FusionError) as exc:
            raise HistoryError(f"version {version}", found=f"a damaged file ({exc})", expected="its config") from exc
        if found != version:
            raise HistoryError(f"version {version}", found=f"content of {found}", expected="its own content")
        return files

    def pin(self, version: str, *, by: str) -> None:
        """Serve a stored version, whatever the config says, until `unpin`.

        Raises:
            HistoryError: not stored or damaged, or the folder cannot be written.
        """
        self.files_of(version)
        with _translated(self.folder):
            write_aside(self.folder / "pin.json", json.dumps({"version": version, "by": by}).encode())
        self.audit("pinned", version, by=by)

    def unpin(self, *, by: str) -> None:
        """Serve the config on disk again; nothing happens where nothing is pinned.

        Raises:
            HistoryError: the folder cannot be written.
        """
        try:
            pinned = self.pinned()
        except HistoryError:
            pinned = "unreadable"  # a damaged pin can be taken away too
        if pinned is None:
            return
        with _translated(self.folder):
            (self.folder / "pin.json").unlink(missing_ok=True)
        self.audit("unpinned", pinned, by=by)

    def pinned(self) -> str | None:
        """Return the pinned version, or None.

        Raises:
            HistoryError: there is a pin that does not read.
        """
        file = self.folder / "pin.json"
        try:
            version = json.loads(file.read_bytes())["version"]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise HistoryError(str(file), found=str(exc), expected='{"version": "sha256:…"}') from exc
        self._file_of(version)
        return str(version)

    def audit(self, event: str, version: str, **details: str | None) -> None:
        """Append one line: time, process, event, version and details.

        Raises:
            HistoryError: the folder cannot be written.
        """
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = json.dumps({"time": now, "pid": os.getpid(), "event": event, "version": version, **details}) + "\n"
        with _translated(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / "audit.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(handle, line.encode())  # one write, so lines of several workers do not mix
                os.fsync(handle)
            finally:
                os.close(handle)

    def _file_of(self, version: str) -> Path:
        if not isinstance(version, str) or not _VERSION.fullmatch(version):
            raise HistoryError("version", found=repr(version), expected="sha256: and 64 hex digits")
        return self.folder / "versions" / f"{version.removeprefix('sha256:')}.json"

    def _prune(self, active: str) -> None:
        keep = {active, self.pinned()}
        for stored in self.versions()[KEPT_VERSIONS:]:
            if stored.version not in keep:
                self._file_of(stored.version).unlink(missing_ok=True)


@contextmanager
def _translated(folder: Path) -> Iterator[None]:
    """Turn the operating system's errors into HistoryError."""
    try:
        yield
    except OSError as exc:
        raise HistoryError(str(folder), found=exc.strerror, expected="a folder to write to") from exc


def write_aside(path: Path, data: bytes) -> None:
    """Write so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
