"""The ways in which a config file comes to hold something else."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def rename(file: Path, text: str) -> None:
    """Write a file beside it and rename it: whole at every moment."""
    aside = file.with_name(".aside")
    aside.write_text(text)
    aside.replace(file)


def swap_link(file: Path, text: str) -> None:
    """Swap a folder behind a link, as Kubernetes does: fusion.yaml → ..data/fusion.yaml, ..data → a fresh folder."""
    folder = file.parent
    old = (folder / "..data").resolve() if (folder / "..data").exists() else None
    fresh = folder / f"..{time.monotonic_ns()}"
    fresh.mkdir()
    (fresh / file.name).write_text(text)
    link = folder / "..new"
    link.symlink_to(fresh.name)
    link.replace(folder / "..data")
    if not file.is_symlink():
        file.unlink()
        file.symlink_to(f"..data/{file.name}")
    if old is not None:
        (old / file.name).unlink()
        old.rmdir()


def rewrite(file: Path, text: str) -> None:
    """Truncate it, then write it in two halves: broken for a moment."""
    with file.open("w") as opened:
        opened.write(text[: len(text) // 2])
        opened.flush()
        time.sleep(0.005)
        opened.write(text[len(text) // 2 :])


SWAPPERS: dict[str, Callable[[Path, str], None]] = {"rename": rename, "ConfigMap": swap_link, "truncate": rewrite}
"""In this order: a file becomes a link by the second, and stays one."""
