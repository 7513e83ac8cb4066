"""Makes each peer's environment, `.peers/<name>`, from its list of pinned packages."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from loadtest.peers.catalogue import PEERS_FOLDER, SOURCES, Server

INSTALL_S = 1200.0


def install_peers(peers: Sequence[Server], say: Callable[[str], None]) -> dict[str, str]:
    """Return peer → why it could not be installed; what is installed already is left alone.

    The reason is kept in `.peers/<name>.failed`, so that later comparisons name it.
    """
    failures = {}
    for peer in peers:
        assert peer.peer is not None
        folder, failure = PEERS_FOLDER / peer.peer, PEERS_FOLDER / f"{peer.peer}.failed"
        if (folder / "installed").exists():
            say(f"{peer.name}: installed in {folder}")
            continue
        say(f"{peer.name}: installing in {folder}")
        reason = _install(peer, folder, SOURCES / peer.peer / "requirements.txt")
        if reason is None:
            (folder / "installed").touch()
            failure.unlink(missing_ok=True)
            continue
        shutil.rmtree(folder, ignore_errors=True)
        failure.write_text(reason)
        failures[peer.name] = reason
        say(f"{peer.name}: {reason}")
    return failures


def _install(peer: Server, folder: Path, requirements: Path) -> str | None:
    """Return what went wrong, None where nothing did."""
    if shutil.which(peer.python) is None:
        return f"no {peer.python} here"
    PEERS_FOLDER.mkdir(exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    for command in ([peer.python, "-m", "venv", str(folder)], [*pip, "--requirement", str(requirements)]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_S)
        except subprocess.TimeoutExpired:
            return f"{command[0]} took more than {INSTALL_S:g} s"
        if done.returncode:
            said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            return f"cannot be installed: {said[-1][-300:] if said else f'exit code {done.returncode}'}"
    return None
