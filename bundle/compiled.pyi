from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bundle.columns import Column, ListColumn

def hash_columns(
    columns: Mapping[str, Column | ListColumn],
    plan: list[tuple[str, int, int, int]],
    codes_NC: NDArray[np.int32],
    first_code: int,
) -> tuple[dict[str, int], list[str]]: ...
def hash_values(
    values: Mapping[str, object],
    plan: list[tuple[str, int, int, int]],
    codes_1C: NDArray[np.int32],
    first_code: int,
) -> dict[str, int] | None: ...
def find_rows(
    index_S: NDArray[np.int32], words_MW: NDArray[np.uint64], ids: Sequence[str], found_N: NDArray[np.int32]
) -> None: ...
def all_finite(arrays: Iterable[NDArray[np.float32]]) -> bool: ...
