from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bundle.columns import Column

class CandidateReader:
    def __init__(self, names: Sequence[str], kinds: Sequence[str]) -> None: ...
    def read(
        self, body: bytes, most: int
    ) -> (
        tuple[
            bytes,
            list[str],
            list[str | None] | None,
            dict[str, Column | list[str | None]],
        ]
        | None
    ): ...

def write_items(
    ids: list[str],
    order_K: NDArray[np.int64],
    scores: bytes,
    columns_NC: NDArray[np.float32],
    template: tuple[bytes, ...],
    last: list[bytes] | None = None,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes | None: ...
