"""When the supervisor takes a worker for hung; what it does then is the matter of the scenario worker-sigstop."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from service.settings import Settings
from service.supervisor import Supervisor


class Process:
    killed = False

    def kill(self) -> None:
        self.killed = True

    def join(self) -> None:
        assert self.killed


@pytest.mark.parametrize(
    ("hang_seconds", "beats", "killed"),
    [
        (1.0, [7] * 12, True),
        (1.0, [7] * 9, False),
        (1.0, [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3], False),
        (1.0, [0] * 50, False),  # does not serve yet
        (0.0, [7] * 50, False),
    ],
)
def test_a_worker_is_killed_once_its_loop_has_not_turned_for_so_many_looks(tmp_path, hang_seconds, beats, killed):
    settings = Settings(models=Path("m"), fusion=Path("f"), hang_seconds=hang_seconds)
    supervisor, process, count = Supervisor(settings, tmp_path, 2), Process(), SimpleNamespace(value=0)
    supervisor.watch_beats(0, count)
    for count.value in beats:
        supervisor.look_for_life(0, process)
    assert process.killed == killed
