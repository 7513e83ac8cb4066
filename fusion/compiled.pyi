from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

class WeightedSum:
    def __init__(
        self,
        tasks: int,
        columns: Sequence[int],
        joint: Sequence[bool],
        weights: Sequence[float],
        p_up: float | None,
        squeeze: tuple[float, float, float] | None,
    ) -> None: ...
    def scores(
        self,
        p_NT: NDArray[np.float32],
        p_joint_NT: NDArray[np.float32] | None,
        p_up_N: NDArray[np.float32] | None,
    ) -> NDArray[np.float64] | None: ...

def order_by_score(score_N: NDArray[np.float64]) -> NDArray[np.intp] | None: ...
