"""`dlen` whose rank 1 kills itself before the step that the first argument names: what a lost process looks like."""

from __future__ import annotations

import os
import signal
import sys

from cli import main
from training.train import Trainer

step, at = Trainer.step, int(sys.argv[1])


def step_or_die(self: Trainer, batch):
    if self.progress.step == at and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch)


Trainer.step = step_or_die
sys.exit(main(sys.argv[2:]))
