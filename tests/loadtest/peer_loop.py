"""A bare loop whose graphs add up codes in place of a model: `plain` right, `plain-off` wrong by a half."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[2]))
from loadtest.peers.bare_loop import answer


def plain(inputs):
    return inputs["codes"][:, :2].astype(np.float32) / 100


def apart(inputs):
    assert inputs["request_codes"].shape == (1, 3) and inputs["item_codes"].flags.c_contiguous
    rows = np.repeat(inputs["request_codes"], len(inputs["item_codes"]), axis=0)
    return rows[:, :2].astype(np.float32) / 100


if __name__ == "__main__":
    answer({"plain": plain, "plain-off": lambda inputs: plain(inputs) + 0.5, "fp32": apart})
