"""`dlen` whose rank 1 kills itself before the step that the first argument names: what a lost process looks like."""

from __future__ import annotations

import os
import signal
import sys

from cli import main
from training.train import Trainer


def die_before(at: int) -> None:
    """Let rank 1 of this run be killed before step `at`."""
    step = Trainer.step

    def step_or_die(self: Trainer, batch):
        if self.progress.step == at and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch)

    Trainer.step = step_or_die


if __name__ == "__main__":
    die_before(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
