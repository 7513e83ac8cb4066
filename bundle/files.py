"""Files and folders that appear whole or not at all: write aside, fsync, rename.

Knows nothing of what is written.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_CHUNK_BYTES = 1 << 20
_KEY_FILE = ".key"


def sha256_of(path: Path) -> str:
    """Return the file's sha256 as lower-case hex, reading it in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old content or the new, never a part."""
    with new_file(path) as file:
        file.write(data)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write to that becomes `path` when the block ends without an error, and else is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `path` that becomes `path` when the block ends without an error.

    With `replace`, an existing `path` is swapped out and removed; without it, an existing `path` is an error.

    Raises:
        FileExistsError: `path` exists, is not an empty folder, and `replace` is false.
    """
    if not replace and path.exists() and (not path.is_dir() or any(path.iterdir())):
        msg = f"{path}: got an existing folder, want a new one"
        raise FileExistsError(msg)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield aside
        _put_in_place(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


@contextmanager
def resumed_folder(path: Path, key: str, *, replace: bool = False) -> Iterator[Path]:
    """Yield a folder beside `path` that becomes `path` when the block ends without an error.

    After a kill it stays, and is yielded again, as it was left, to the next caller with the same `key`; another
    key starts anew. An error in the block removes it. With `replace`, an existing `path` is swapped out.

    Raises:
        FileExistsError: `path` exists, is not an empty folder, and `replace` is false.
        BlockingIOError: another process is in such a block for the same `path`.
    """
    if not replace and path.exists() and (not path.is_dir() or any(path.iterdir())):
        msg = f"{path}: got an existing folder, want a new one"
        raise FileExistsError(msg)
    aside = path.parent / f".{path.name}.partial"
    aside.mkdir(parents=True, exist_ok=True)
    handle = os.open(aside, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise BlockingIOError(exc.errno, "another process that makes the same folder") from exc
        try:
            _start_or_resume(aside, key)
            yield aside
            (aside / _KEY_FILE).unlink()
            _put_in_place(aside, path)
        except Exception:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    finally:
        os.close(handle)


def _start_or_resume(aside: Path, key: str) -> None:
    """Empty the folder unless it was begun with the same key."""
    key_file = aside / _KEY_FILE
    if key_file.is_file() and key_file.read_text("utf-8") == key:
        return
    for entry in aside.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    write_file(key_file, key.encode())


def _put_in_place(aside: Path, path: Path) -> None:
    """Flush a finished folder to the disk and rename it to `path`."""
    aside.chmod(0o755)
    for file in sorted(aside.rglob("*")):
        if file.is_file():
            _sync_file(file)
    _sync_folder(aside)
    _swap_in(aside, path)
    _sync_folder(path.parent)


def _swap_in(aside: Path, path: Path) -> None:
    """Rename `aside` to `path`; a previous folder is moved away first and removed after."""
    if not path.exists():
        aside.rename(path)
        return
    previous = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
    path.rename(previous / "previous")
    try:
        aside.rename(path)
    except BaseException:
        (previous / "previous").rename(path)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
