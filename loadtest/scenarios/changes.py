"""What changes during a soak: fusion configs, model versions, users, connections."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import yaml

from loadtest.traffic import build_requests, parse_target

CHURN_PER_S = 5.0


def changed_configs(text: str, count: int) -> list[bytes]:
    """Return a fusion config in so many variations, with an experiment that half of the users are in."""
    given = []
    for number in range(count):
        document = yaml.safe_load(text)
        name = document["default"]
        policy = document["policies"][name]
        policy["description"] = f"variation {number}"
        if "p_up" in policy:
            policy["p_up"] = round(float(policy["p_up"]) + number / 1000, 4)
        variants = [
            {"name": "as_it_is", "weight": 0.5},
            {"name": "patched", "weight": 0.5, "patch": {"description": "in the experiment"}},
        ]
        experiment = {"name": "soak", "traffic": 0.5, "variants": variants}
        document["layers"] = [*document.get("layers", ()), {"name": "soak", "experiments": [experiment]}]
        given.append(yaml.safe_dump(document).encode())
    return given


def users_of(bodies: Sequence[bytes], count: int) -> tuple[bytes, ...]:
    """Return requests of so many different users, made of the bodies in turns."""
    made = []
    for number in range(count):
        document = json.loads(bodies[number % len(bodies)])
        document["user"] = {**document.get("user", {}), "id": f"soak-{number}"}
        document["request_id"] = f"soak-{number}"
        made.append(json.dumps(document).encode())
    return tuple(made)


class Models:
    """A models folder whose highest version changes: copies of one bundle, of which the last two stay."""

    def __init__(self, source: Path, folder: Path) -> None:
        """Copy the highest version of each model into `folder`."""
        self._folder = folder
        self.version, self.swaps = 1, 0
        self.at: list[float] = []
        for model in sorted(path for path in source.iterdir() if path.is_dir()):
            versions = [int(path.name) for path in model.iterdir() if path.name.isdecimal()]
            if versions:
                shutil.copytree(model / str(max(versions)), folder / model.name / "1")

    def swap(self) -> None:
        """Add a version."""
        for model in self._folder.iterdir():
            aside = model / ".next"
            shutil.copytree(model / str(self.version), aside)
            aside.rename(model / str(self.version + 1))
            shutil.rmtree(model / str(self.version - 1), ignore_errors=True)
        self.version += 1
        self.swaps += 1
        self.at.append(time.monotonic())


class Churn:
    """Connections that are opened, used once or left half-way, and closed."""

    def __init__(self, url: str, bodies: Sequence[bytes]) -> None:
        """Open nothing yet."""
        target = parse_target(url)
        self._address = (target.host, target.port)
        self._requests = build_requests(target, bodies)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.done = self.refused = 0

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(1 / CHURN_PER_S):
            request = self._requests[self.done % len(self._requests)]
            try:
                with socket.create_connection(self._address, timeout=5) as opened:
                    opened.sendall(request if self.done % 4 else request[: len(request) // 2])
                    if self.done % 4:
                        opened.recv(65536)
            except OSError:
                self.refused += 1
            self.done += 1
