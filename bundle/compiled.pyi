from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

def hash_into(
    values_HN: list[NDArray[np.int64]],
    buckets_H: list[int],
    columns_H: list[int],
    codes_NC: NDArray[np.int32],
    first_code: int,
) -> None: ...
def all_finite(arrays: Iterable[NDArray[np.float32]]) -> bool: ...
